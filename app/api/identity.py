"""Each request has a name: its caller's, where that is a UUID, or a new one. It is in the log and in the answer."""

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import request_name

_HEADER = b"x-request-id"
_UUID = re.compile(rb"[0-9a-f]{8}(-?)(?:[0-9a-f]{4}\1){3}[0-9a-f]{12}", re.IGNORECASE)


class Identity:
    """Names requests; what is no UUID is not taken for a name, since it may be a secret or forge a line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        name = given if _UUID.fullmatch(given) else secrets.token_hex(16).encode()
        request_name.set(name.decode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (_HEADER, name)]
            await send(message)

        await self._app(scope, receive, named)
