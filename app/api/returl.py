"""The listener: takes K-Pay's postbacks in.

It stands before the API, not in it: of the time that a postback took, a third went by in the framework's layers, and a
pydantic parameter would turn real postbacks away. The mac in the path is checked before the database is touched, and
"OK" is said only of what is committed.
"""

import json
from functools import cache

import structlog
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app import metrics
from app.api.asgi import BodyRefused, read_body
from app.api.context import Context, is_within, remote_address
from app.api.identity import Identity
from app.api.problems import Problem, mistake
from app.database import UNAVAILABLE
from app.domain import Evidence, Source, Status, changes_nothing, transition
from app.inbox import Full, Postback
from app.kpay import meaning
from app.kpay.wire import Message, read
from app.macs import NO_SUCH_RETURL, RETURL
from app.models import Row
from app.raw import Raw
from app.snapshot import snapshot

log = structlog.get_logger()

PREFIX = "/kpay/returl/"
_PARTS = 4
"""Slashes in the path of a postback."""

_LONGEST_CONTENT_TYPE = 200
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # one for all, where a JSONResponse makes its own
_counter = cache(metrics.POSTBACKS.labels)


class Listener:
    """Answers `POST /kpay/returl/{refid}/{mac}` and hands every other request on, in the end to `api`.

    OK once the postback is stored, ERROR where it could not be understood, 503 where it is not stored.
    """

    def __init__(self, api: FastAPI, others: ASGIApp) -> None:
        self.api = api
        self._others = others
        self._identified = Identity(self._hand_on)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        scope["app"] = self.api
        await self._identified(scope, receive, send)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_postback = (
            scope["type"] == "http" and scope["path"].startswith(PREFIX) and scope["path"].count("/") == _PARTS
        )
        await (self._postback if is_postback else self._others)(scope, receive, send)

    async def _postback(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: Context = self.api.state.context
        try:
            body = await read_body(scope, receive)
            if body is None:
                return
            response = await self._response(parts, Request(scope), body)
        except BodyRefused as exc:
            response = exc.problem.response()
        except Exception as exc:  # noqa: BLE001 - K-Pay gets an answer, whatever it is
            response = await mistake(Request(scope), exc)
        if parts.stopping.is_set():
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    async def _response(self, parts: Context, request: Request, body: bytes) -> Response:
        if request.method != "POST":
            problem = Problem(405, "method_not_allowed", "Method Not Allowed", headers={"Allow": "POST"})
            return problem.response()
        refid, mac = request.scope["path"].removeprefix(PREFIX).split("/")
        response, answer = await _answer(parts, request, refid, mac, body)
        _counter(answer).inc()
        return response


async def _answer(parts: Context, request: Request, refid: str, mac: str, body: bytes) -> tuple[Response, str]:
    settings = parts.settings
    remote = remote_address(request, settings.trusted_proxies)
    if settings.postback_allowed_ips and not is_within(remote, settings.postback_allowed_ips):
        log.warning("postback from an address that is not allowed", remote=remote[:60])
        return Problem(403, "forbidden", "postbacks are not taken from this address").response(), "forbidden"
    if not parts.macs.verify(RETURL, refid, mac):
        log.warning("postback with a wrong mac", remote=remote[:60])
        return Problem(404, NO_SUCH_RETURL, "there is nothing here").response(), "wrong_mac"

    content_type = request.headers.get("content-type", "")
    raw = Raw(Source.POSTBACK, body, content_type[:_LONGEST_CONTENT_TYPE], remote=remote[:60])
    message = read(raw.body, content_type)
    parts.unseen.look(message, content_type)
    if message is not None and message.refid != refid:
        log.error("postback for another refid than its path's", refid=refid)
        message = None
    try:
        fits = await _take_in(parts, refid, message, raw)
    except Full:
        return _not_stored("more postbacks wait than can be stored in time"), "overloaded"
    except UNAVAILABLE as exc:
        log.error("postback not stored", refid=refid, error=type(exc).__name__)  # noqa: TRY400 - see the inbox
        return _not_stored("the database is out of reach"), "unavailable"
    if message is None or not fits:
        return _reply(None, refid, "ERROR", 400), "error"
    return _reply(message.tid, refid, "OK"), "ok"


def _reply(tid: str | None, refid: str, reply: str, status: int = 200) -> Response:
    """Return what K-Pay expects (guide, "Post back asynchronous")."""
    words = _JSON.encode({"tid": tid or "", "refid": refid, "reply": reply})
    return Response(words, status, media_type="application/json")


async def _take_in(parts: Context, refid: str, message: Message | None, raw: Raw) -> bool:
    """Store the postback and act on what it says; False where it names another tid than the payment's."""
    decides = parts.settings.confirm == "never" and message is not None
    evidence = meaning.of_postback(message, hint=not decides)
    row = await parts.inbox.put(Postback(refid, evidence, raw))
    if row is None:
        metrics.UNKNOWN_PAYMENTS.inc()
        log.error("authentic postback for a payment that is not in the database: was one restored?", refid=refid)
        return True
    fits = not (row.tid and evidence.tid and row.tid != evidence.tid)
    if not fits and decides:
        evidence = meaning.of_postback(message, hint=True)
    if not changes_nothing(Status(row.status), row.tid, evidence) and _changes_something(parts, row, evidence):
        await parts.intake.take_in(refid, evidence)
    return fits


def _changes_something(parts: Context, row: Row, evidence: Evidence) -> bool:
    """Whether this postback seems to change more than the inbox wrote: under `CONFIRM=always` hardly ever.

    It saves a lock. `take_in` decides again under the lock, so a wrong guess here costs time and no truth.
    """
    before = snapshot(row)
    after = transition(before, evidence, parts.intake.policy.rules)
    return bool(after.reviews) or (after.status, after.tid, after.momtransactionid) != (
        before.status,
        before.tid,
        before.momtransactionid,
    )


def _not_stored(why: str) -> Response:
    problem = Problem(503, "unavailable", f"not stored: {why}; send it again", headers={"Retry-After": "1"})
    return problem.response()
