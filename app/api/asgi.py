"""Pure ASGI middleware: who calls is known before a body is read, and a body has a size and a deadline.

uvicorn bounds neither: it takes 20 MB, and lets a slow sender hold a connection for ever. Here a body is read whole
before anybody sees the request, so that a handler never waits for a client.
"""

import asyncio
from contextlib import nullcontext

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.api import payer
from app.api.context import parts_of, remote_address, unauthorized
from app.api.problems import Problem, answer_to, unavailable
from app.clients import Client
from app.database import UNAVAILABLE

MAX_BODY = 64 * 1024
BODY_SECONDS = 10.0
_CLOSE = {"Connection": "close"}


class Farewell:
    """Answers what goes wrong before the framework, and closes a connection where nothing more should come by it.

    Once the service is stopping the next one is led elsewhere. And a body that was answered before it was read (401,
    429, 503) is bounded by nobody: it could dribble in for ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, has_begun = Request(scope), False
        stopping = parts_of(request).stopping
        headers = dict(scope["headers"])
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

        async def reading() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body", False))
            return message

        async def closing(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start" and (unread or stopping.is_set()):
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, reading, closing)
        except Exception as exc:
            if has_begun:
                raise  # the framework has answered, and tells the server
            await (await answer_to(request, exc))(scope, reading, closing)


_GUESSER = Problem(
    429,
    "too_many_wrong_keys",
    "too many wrong keys came from this address; wait a minute",
    headers={"Retry-After": "60"},
)


class Authentication:
    """Answers 401 to a call under `/v1/` without a valid key, and leaves the client in `request.state.client`.

    Before the body is read: nobody's body is neither waited for nor discussed. An address that has sent too many
    wrong keys is answered 429 to more of them; a right one is let in, though it may have to come again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip()
        bearer = kind.lower() == "bearer"
        client = parts_of(request).clients.remembered(key) if bearer else None
        answer: Client | Response = client or await _looked_up(request, key, bearer=bearer)
        if isinstance(answer, Response):
            await answer(scope, receive, send)
            return
        state = request.state
        state.client, state.key = answer, key
        await self._app(scope, receive, send)


async def _looked_up(request: Request, key: str, *, bearer: bool) -> Client | Response:
    """Return whose key it is, or what is answered where it is nobody's."""
    parts = parts_of(request)
    guesser = bool(key) and not parts.clients.has_seen(key) and parts.guesses.too_many(_address(request))
    if guesser and parts.guesses.turn.locked():
        return _GUESSER.response()
    try:
        async with parts.guesses.turn if guesser else nullcontext():
            client = await parts.clients.by_key(key) if bearer else None
    except UNAVAILABLE as exc:
        return await unavailable(request, exc)
    if client is not None:
        return client
    if guesser:
        return _GUESSER.response()
    if key:
        metrics.WRONG_KEYS.inc()
        parts.guesses.note(_address(request))
    return unauthorized().response()


def _address(request: Request) -> str:
    return remote_address(request, parts_of(request).settings.trusted_proxies)


class BodyLimit:
    """Answers 413 to a body over 64 KiB and 408 to one that is not there in time; hands every other one on whole.

    What a payer's browser sends is not read at all: nobody may hold a payer's place with a body that does not come.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith(payer.PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(scope, receive)
        except BodyRefused as exc:
            await exc.problem.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)


class BodyRefused(Exception):  # noqa: N818 - the name says what it is
    """A body is not taken: what is answered, before the connection is closed that the rest of it may come by."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


async def read_body(scope: Scope, receive: Receive) -> bytes | None:
    """Return the whole body, or None where the client has gone. Raises `BodyRefused`: too large, or too slow."""
    is_there = scope.get("state", {}).get("body_is_there")  # app.server tells; another server need not
    if is_there is not None and is_there():
        return await _read(scope, receive)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(scope, receive)
    except TimeoutError:
        raise BodyRefused(Problem(408, "too_slow", "the body did not arrive in time", headers=_CLOSE)) from None


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:10]) > MAX_BODY:
        raise _too_large()
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(body)


def _too_large() -> BodyRefused:
    return BodyRefused(Problem(413, "too_large", "a body may have 64 KiB at most", headers=_CLOSE))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once and then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
