"""Server-sent events (WHATWG HTML, 9.2), and a client's feed as such: one coroutine and one ring for each stream.

Back-pressure: a page is read from the database when the one before it has gone out, so a slow reader costs what one
page takes, and one that takes nothing for a minute is cut off. It comes back with `Last-Event-ID` and misses nothing.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import feed, metrics
from app.api.context import Context, still_valid
from app.api.waiting import gone
from app.bell import Ring, of_feed
from app.database import UNAVAILABLE
from app.models import Row

Put = Callable[[bytes], Awaitable[None]]

HEARTBEAT_SECONDS = 15.0
"""A comment is sent when nothing else was for so long: proxies close what is idle, and a reader knows we are there."""
_PAGE = 100
_SLOWEST_SECONDS = 60
_COME_BACK_MILLISECONDS = 1_000
HEARTBEAT = b": \n\n"


def come_back() -> bytes:
    """Return what tells a reader when to connect again: not all at once, since after a restart thousands do."""
    return format_sse_event(retry=_COME_BACK_MILLISECONDS + secrets.randbelow(2 * _COME_BACK_MILLISECONDS))


class Stream(Response):
    """A stream that rings for `name`: `send_all` puts what there is, until the reader goes or we stop."""

    media_type = "text/event-stream"

    def __init__(self, parts: Context, name: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._name = name

    async def send_all(self, put: Put, rung: Ring, leaving: asyncio.Task[None]) -> None:
        """Put every event, until `leaving` is done, the service stops or nothing more will come."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until one side ends it."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        leaving = asyncio.create_task(gone(receive))

        async def put(body: bytes, *, more: bool = True) -> None:
            sending = asyncio.ensure_future(send({"type": "http.response.body", "body": body, "more_body": more}))
            for _ in range(_SLOWEST_SECONDS):
                await asyncio.wait({sending}, timeout=1)
                if sending.done() or self._parts.stopping.is_set():
                    break
            if not sending.done():
                scope["state"]["hang_up"]()  # a goodbye would wait behind what it does not take
            await sending

        try:
            with metrics.STREAMS.track_inprogress(), self._parts.bell.listen(self._name) as rung:
                leaving.add_done_callback(lambda _: rung.ring())
                await self.send_all(put, rung, leaving)
                await put(b"", more=False)
        finally:
            leaving.cancel()


class EventStream(Stream):
    """The events of `client` after `position`, and every one that comes."""

    def __init__(self, request: Request, parts: Context, client: str, position: int) -> None:
        super().__init__(parts, of_feed(client))
        self._request = request
        self._client = client
        self._position = position

    async def send_all(self, put: Put, rung: Ring, leaving: asyncio.Task[None]) -> None:
        """Put page after page; wait for the feed to grow where there is none."""
        await put(come_back())
        while not (leaving.done() or self._parts.stopping.is_set()):
            try:
                if not await still_valid(self._request, self._parts):
                    return
                body, self._position = await _page(self._parts, self._client, self._position)
            except UNAVAILABLE:
                await asyncio.sleep(1)  # the reader has lost nothing: it goes on where it is
                continue
            if body:
                await put(body)
            elif not await rung.within(HEARTBEAT_SECONDS):
                await self._wait(put, rung)

    async def _wait(self, put: Put, rung: Ring) -> None:
        """Keep an idle stream alive until it is rung for, or its key is not valid any more; look for nothing."""
        while True:
            with suppress(*UNAVAILABLE):
                if not await still_valid(self._request, self._parts):
                    return
            await put(HEARTBEAT)
            if await rung.within(HEARTBEAT_SECONDS):
                return


async def _page(parts: Context, client: str, position: int) -> tuple[bytes, int]:
    """Return the next events as they are sent, and where they end; of all who are woken at one place one reads."""
    at = (client, position)
    reading = parts.pages.get(at)
    if reading is None:
        reading = parts.pages[at] = asyncio.create_task(_read_page(parts, client, position))
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
    return await asyncio.shield(reading)


async def _read_page(parts: Context, client: str, position: int) -> tuple[bytes, int]:
    del parts.pages[client, position]  # whoever comes from here on may have been woken by a later event
    rows = await feed.after(parts.database, client, position, _PAGE)
    return b"".join(_encoded(row) for row in rows), rows[-1].event_position if rows else position


def _encoded(row: Row) -> bytes:
    event = feed.told(row)
    return format_sse_event(id=event.id, event=event.type, data_str=event.model_dump_json())
