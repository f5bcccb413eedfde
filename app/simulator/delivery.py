"""How an answer travels to its caller: whole, drop by drop, too late, or not at all."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.simulator import wire
from app.simulator.answers import response
from app.simulator.script import Delivery

HANGUP: Final = "kpay.hangup"
"""The ASGI extension whose `close` ends the connection with nothing said; see `server`."""

_HOLD: Final = 60.0
"""Seconds until a held answer becomes a proxy's 504."""
_DRIBBLE: Final = 0.5
"""Seconds between the bytes of a dribbled answer."""


class Courier:
    """Delivers answers. `closing` set makes those that are being held or dribbled end at once."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self._ways: dict[Delivery, Callable[[Request, Response], Awaitable[Response]]] = {
            Delivery.WHOLE: self._whole,
            Delivery.DRIBBLED: self._dribbled,
            Delivery.HELD: self._held,
            Delivery.CLOSED: self._closed,
        }

    async def deliver(self, delivery: Delivery, request: Request, answer: Response) -> Response:
        """Give the answer that travels as `delivery` says; this takes as long as nothing is sent."""
        return await self._ways[delivery](request, answer)

    async def _whole(self, _: Request, answer: Response) -> Response:
        return answer

    async def _dribbled(self, _: Request, answer: Response) -> Response:
        async def drops() -> AsyncIterator[bytes]:
            for byte in bytes(answer.body):
                yield bytes([byte])
                if await self._rest(_DRIBBLE):
                    return

        return StreamingResponse(drops(), answer.status_code, media_type=wire.JSON)

    async def _held(self, request: Request, _: Response) -> Response:
        left = asyncio.create_task(_gone(request))
        closing = asyncio.create_task(self.closing.wait())
        await asyncio.wait({left, closing}, timeout=_HOLD, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        closing.cancel()
        return response(wire.html_page, {}, 504)

    async def _closed(self, request: Request, _: Response) -> Response:
        request.scope["extensions"][HANGUP]["close"]()
        await _gone(request)
        return Response()  # to nobody

    async def _rest(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)
        return self.closing.is_set()


async def _gone(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
