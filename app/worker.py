"""The background of a service: tasks that must run while it does, and a clean stop."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import structlog

log = structlog.get_logger()


@asynccontextmanager
async def background(*tasks: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run `tasks` for as long as the block lasts, then cancel those that are not done.

    A task that dies of a mistake takes the process with it: half a service that looks whole is worse than a restart.
    """
    running = [asyncio.create_task(task) for task in tasks]
    for task in running:
        task.add_done_callback(_died)
    try:
        yield running
    finally:
        for task in running:
            task.cancel()
        for task in running:
            with suppress(asyncio.CancelledError, Exception):
                await task


_deaths: list[BaseException] = []


def has_died() -> bool:
    """Whether a background task of this process died: then it must not end as if all were well."""
    return bool(_deaths)


def _died(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        _deaths.append(exc)
        log.critical("a background task died; stopping", exc_info=exc)
        os.kill(os.getpid(), signal.SIGINT)


def set_on_signal(stopping: asyncio.Event, *, alone: bool, delay: float = 0.0) -> None:
    """Set `stopping` on SIGTERM and SIGINT; unless `alone`, whoever handled them before (the server) does so too.

    After SIGTERM the server goes on for `delay` seconds: a load balancer must see that it is stopping before it stops
    listening, or requests are refused. SIGINT means now; a second SIGTERM (a supervisor's, after the group's) nothing.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None, before: Any = before) -> None:  # noqa: ANN401 - what signal gives
            if received == signal.SIGTERM and stopping.is_set():
                return
            later = delay if received == signal.SIGTERM else 0.0
            loop.call_soon_threadsafe(stopping.set)
            if callable(before) and not alone:
                loop.call_soon_threadsafe(loop.call_later, later, before, received, frame)

        signal.signal(number, handle)
