"""The plain read of a payment, `GET /v1/payments/{refid}`, which most calls are.

It stands before the framework and behind everything of ours: of the time that a read took, half went by in the
framework's layers. A read that waits, or that has a body, is the framework's, which has the same route.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import domain
from app.api.context import caller_of, parts_of
from app.api.payments import own
from app.body import Payment

_PREFIX = "/v1/payments/"
_OF_A_BODY = (b"content-length", b"transfer-encoding")


class Reading:
    """Answers plain reads and hands every other request on; stands behind `Authentication`, and `Farewell` answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not _is_plain(scope):
            await self._app(scope, receive, send)
            return
        response = await _read(Request(scope))
        await response(scope, receive, send)


def _is_plain(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
        return False
    refid = scope["path"].removeprefix(_PREFIX)
    is_one = 0 < len(refid) < len(scope["path"]) and "/" not in refid
    return is_one and not any(name in _OF_A_BODY for name, _ in scope["headers"])


async def _read(request: Request) -> Response:
    client = caller_of(request, domain.Scope.PAYMENTS_READ)
    row = await own(parts_of(request), client, request.scope["path"].removeprefix(_PREFIX))
    return Response(Payment.of(row).model_dump_json(), media_type="application/json")
