"""Carries what a process announces to all others, by PostgreSQL's LISTEN and NOTIFY on one connection of its own.

NOTIFY inside a transaction makes every commit wait in one line, so it is sent after the commit, many names at once.
What is lost (a crash in between, a connection that broke, a pooler that cannot LISTEN) costs time, never truth:
whoever waits looks all the same, more often while nothing can be heard.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from app.bell import Bell
from app.database import ANSWER_SECONDS, TELLING, UNAVAILABLE, make_engine

log = structlog.get_logger()

CHANNEL = "kpayd"

_MOST_BYTES = 7_900  # a notification's payload has 8,000 at most
_TRY_AGAIN_SECONDS = 1.0
_PULSE_SECONDS = 5.0


class Herald:
    """Tells and hears for this process. `run` must be running; without it `bell` rings in this process alone."""

    def __init__(self, database_url: str, bell: Bell) -> None:
        self._url = database_url
        self._bell = bell

    async def run(self) -> None:
        """Tell and hear until cancelled, however often the connection breaks."""
        while True:
            try:
                await self._serve()
            except UNAVAILABLE as exc:
                if self._bell.hears_others:
                    log.warning("other processes cannot be heard: looking instead", error=type(exc).__name__)
            finally:
                self._bell.hears_others = False
            await asyncio.sleep(_TRY_AGAIN_SECONDS)

    async def _serve(self) -> None:
        """Tell and hear on one connection until it breaks; raises one of `UNAVAILABLE`."""
        engine = make_engine(self._url, pool=1, name=TELLING)
        try:
            async with engine.connect() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                try:
                    await driver.add_listener(CHANNEL, self._heard)
                    self._bell.hears_others = True
                    while True:
                        await self._tell(driver)
                finally:
                    await connection.invalidate()  # hangs up: a goodbye would wait for a server that has gone
        except UNAVAILABLE:
            raise
        except Exception as exc:
            # The driver's own errors come bare here, without SQLAlchemy around them.
            raise ConnectionError(type(exc).__name__) from exc
        finally:
            await engine.dispose()

    async def _tell(self, driver: Any) -> None:  # noqa: ANN401 - the driver has no types
        try:
            async with asyncio.timeout(_PULSE_SECONDS):
                await self._bell.has_unsaid.wait()
        except TimeoutError:
            await driver.execute("SELECT 1", timeout=ANSWER_SECONDS)  # a connection that has gone silent
            return
        for payload in _payloads(self._bell.take_unsaid()):
            await driver.execute("SELECT pg_notify($1, $2)", CHANNEL, payload, timeout=ANSWER_SECONDS)

    def _heard(self, driver: Any, sender: int, _channel: str, payload: object) -> None:  # noqa: ANN401 - untyped
        if sender == driver.get_server_pid():
            return  # our own: rung when it was announced
        for name in str(payload).split(" "):
            self._bell.ring(name)


def _payloads(names: Sequence[str]) -> Sequence[str]:
    """Return `names` as few payloads; none of them has a space."""
    payloads: list[str] = []
    for name in names:
        if payloads and len(payloads[-1]) + len(name) < _MOST_BYTES:
            payloads[-1] += f" {name}"
        else:
            payloads.append(name)
    return payloads
