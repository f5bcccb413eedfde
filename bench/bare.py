"""An application that does nothing but answer: what uvicorn alone takes to answer with a payment."""

import json

from starlette.types import Receive, Scope, Send

from app.body import EXAMPLE

_BODY = json.dumps(EXAMPLE, separators=(",", ":")).encode()
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer every request alike."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": _BODY})
