"""A client's feed as server-sent events (WHATWG HTML, 9.2): one coroutine and one ring for each stream, nothing else.

Back-pressure: a page is read from the database when the one before it has gone out, so a slow reader costs what one
page takes, and one that takes nothing for a minute is cut off. It comes back with `Last-Event-ID` and misses nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import feed, metrics
from app.api.context import Context
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
_HEARTBEAT = b": \n\n"


class EventStream(Response):
    """The events of `client` after `position`, and every one that comes, until the reader goes or we stop."""

    media_type = "text/event-stream"

    def __init__(self, parts: Context, client: str, position: int) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._client = client
        self._position = position

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
            with metrics.STREAMS.track_inprogress(), self._parts.bell.listen(of_feed(self._client)) as fed:
                leaving.add_done_callback(lambda _: fed.ring())
                await self._send_all(put, fed, leaving)
                await put(b"", more=False)
        finally:
            leaving.cancel()

    async def _send_all(self, put: Put, fed: Ring, leaving: asyncio.Task[None]) -> None:
        await put(format_sse_event(retry=_COME_BACK_MILLISECONDS))
        while not (leaving.done() or self._parts.stopping.is_set()):
            try:
                rows = await self._next()
            except UNAVAILABLE:
                return  # the reader comes back, here or elsewhere
            if rows:
                await put(b"".join(_encoded(row) for row in rows))
                continue
            while not await fed.within(HEARTBEAT_SECONDS):  # nobody rang: there is nothing to look for
                await put(_HEARTBEAT)

    async def _next(self) -> Sequence[Row]:
        rows = await feed.after(self._parts.database, self._client, self._position, _PAGE)
        if rows:
            self._position = rows[-1].event_position
        return rows


def _encoded(row: Row) -> bytes:
    event = feed.told(row)
    return format_sse_event(id=event.id, event=event.type, data_str=event.model_dump_json())
