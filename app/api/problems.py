"""Errors as `application/problem+json` (RFC 9457). The one table from what went wrong to an HTTP status.

No answer repeats what was sent: a rejected value may be a secret.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.body import EXAMPLE
from app.kpay.errors import InDoubt, NotSent
from app.orders import Conflict
from app.reads import BadCursor
from app.tokens import TokenRefused

log = structlog.get_logger()

_MOST_FAULTS = 50
_NO_JSON = {"field": "body", "detail": "must be JSON that can be read"}
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a member of this request",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "int_type": "must be a whole number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "string_type": "must be text",
    "string_unicode": "must be text of Unicode characters",
    "string_too_short": "must not be empty",
    "string_too_long": "must have {max_length} characters or less",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "dict_type": "must be an object",
    "too_long": "must be shorter: {max_length} at most",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "datetime_parsing": "must be a time, e.g. 2026-01-31T08:00:00Z (in a URL, + is written %2B)",
    "datetime_from_date_parsing": "must be a time, e.g. 2026-01-31T08:00:00Z (in a URL, + is written %2B)",
    "timezone_aware": "must have a time zone, e.g. 2026-01-31T08:00:00Z",
}
"""Pydantic's error types in our words, which say what would be right."""

PROBLEM = "application/problem+json"

_MEANINGS = {
    401: "No valid key; nothing was done",
    403: "The key lacks the scope; nothing was done",
    404: "There is no such thing of yours",
    408: "The body did not arrive in time; nothing was done. Send it again",
    409: "A name is taken, or the payment is another gateway's; nothing was recorded or sent. `code` says which",
    413: "The body is over 64 KiB; nothing was done",
    422: "Some fields are at fault, and `errors` names each; nothing was done",
    429: "Too many wrong keys came from this address; nothing was done. Wait as `Retry-After` says",
    500: "A mistake of this service: what it did is not known. Treat it as no answer",
    502: "K-Pay answered and did not do it; `detail` has its words and `retcode` its code",
    503: "Behind, or the database or K-Pay is out of reach: nothing was sent to K-Pay. Send the same again after "
    "`Retry-After`",
    504: "K-Pay gave no answer, or none in time; asking again does no harm",
}
_REFID = "order-1042-1"
_EXAMPLES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "unauthorized": (401, "give a valid key: Authorization: Bearer KEY", {}),
    "forbidden": (403, "this key lacks the scope payments:write", {}),
    "not_found": (404, "there is no such payment of yours", {}),
    "too_slow": (408, "the body did not arrive in time", {}),
    "refid_used": (409, "this refid was used with other content", {"refid": _REFID}),
    "idempotency_key_reused": (409, "this Idempotency-Key was used with other content", {"refid": _REFID}),
    "order_open": (409, "this order has a payment under way", {"refid": _REFID}),
    "order_paid": (409, "this order has been paid", {"refid": _REFID}),
    "other_gateway": (409, "this payment belongs to another gateway, which is not asked from here", {}),
    "too_large": (413, "a body may have 64 KiB at most", {}),
    "invalid_request": (
        422,
        "amount: must be greater than 0",
        {"errors": [{"field": "amount", "detail": "must be greater than 0"}]},
    ),
    "too_many_wrong_keys": (429, "too many wrong keys came from this address; wait a minute", {}),
    "internal": (500, "a mistake of this service; it has been logged", {}),
    "gateway_refused": (502, "Used ref id", {"retcode": "608"}),
    "gateway_unreachable": (503, "no connection to K-Pay (ConnectError)", {}),
    "gateway_timeout": (504, "K-Pay did not answer within 30 s", {}),
    "overloaded": (503, "more calls come than can be served; nothing was done about this one; send it again", {}),
    "stopping": (503, "this process is stopping; connect again", {}),
    "unavailable": (
        503,
        "the database is out of reach; nothing was sent to K-Pay; send the same request again",
        {},
    ),
}
"""The problems that a documented call can answer, by code: status, detail and what else is said."""
_TELLS_WHEN = {"Retry-After": {"description": "Seconds to wait before the next try", "schema": {"type": "integer"}}}


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the errors with these codes as FastAPI's `responses` wants them, each with an example."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, detail, more = _EXAMPLES[code]
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        response = found.setdefault(status, {"description": _MEANINGS[status], "content": {PROBLEM: content}})
        if status in {429, 503}:
            response["headers"] = _TELLS_WHEN
        response["content"][PROBLEM]["examples"][code] = {"value": Problem(status, code, detail).body | more}
    return found


def everywhere() -> dict[int | str, dict[str, Any]]:
    """Return the errors that every call under `/v1/` can answer."""
    return documented(
        *("unauthorized", "forbidden", "too_slow", "too_large", "invalid_request", "too_many_wrong_keys"),
        *("internal", "overloaded", "unavailable"),
    )


_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_RETRY_AFTER = {"Retry-After": "1"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class FieldFault(BaseModel):
    """One field of a request that is at fault."""

    field: str = Field(description="The member's name, or the parameter's", examples=["amount"])
    detail: str = Field(description="What would be right", examples=["must be greater than 0"])


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(description="`code` as a URI", examples=["urn:kpayd:invalid_request"])
    title: str = Field(description="The HTTP status in words", examples=["Unprocessable Entity"])
    status: int = Field(description="The HTTP status", examples=[422])
    detail: str = Field(
        description="What is wrong, for people; it never repeats what was sent",
        examples=["amount: must be greater than 0"],
    )
    code: str = Field(description="What programs look at; docs/answers.md lists all", examples=["invalid_request"])
    refid: str | None = Field(default=None, description="The payment that is in the way, on a 409")
    retcode: str | None = Field(default=None, description="K-Pay's code, where K-Pay said something")
    errors: list[FieldFault] | None = Field(default=None, description="Every field at fault, on a 422")


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer other than success, raised where it is noticed. `code` is what programs look at."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        refid: str | None = None,
        retcode: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        if status == HTTPStatus.UNAUTHORIZED:
            self.headers["WWW-Authenticate"] = "Bearer"
        self.body: dict[str, Any] = {
            "type": f"urn:kpayd:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code,
        }
        self.body |= {name: said for name, said in (("refid", refid), ("retcode", retcode)) if said is not None}
        if errors:
            self.body["errors"] = list(errors)

    def response(self) -> JSONResponse:
        """Return the problem as an answer."""
        return JSONResponse(self.body, self.status, self.headers, PROBLEM)


def invalid(errors: Sequence[Mapping[str, str]]) -> Problem:
    """Return the 422 that names every field at fault."""
    detail = "; ".join(f"{error['field']}: {error['detail']}" for error in errors)
    return Problem(422, "invalid_request", detail, errors=errors)


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    loc = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    if error["type"] == "json_invalid":
        return _NO_JSON
    if loc[-1:] == ["[key]"]:
        return {"field": loc[0], "detail": "each key must have 1 to 40 characters and no NUL"}
    words = _WORDS.get(error["type"])
    detail = words.format(**error.get("ctx", {})) if words else str(error["msg"]).removeprefix("Value error, ")
    return {"field": ".".join(loc)[:100] or "body", "detail": detail}


async def _problem(_: Request, exc: Exception) -> JSONResponse:
    return cast("Problem", exc).response()


async def _validation(_: Request, exc: Exception) -> JSONResponse:
    return invalid([_fault(error) for error in cast("RequestValidationError", exc).errors()[:_MOST_FAULTS]]).response()


def _allowed(request: Request) -> str:
    """Return all methods of a path: the routing names only those of the first route that it finds."""

    def is_there(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return ", ".join(filter(is_there, _METHODS))


async def _http(request: Request, exc: Exception) -> JSONResponse:
    http = cast("HTTPException", exc)
    if http.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        http.headers = {"Allow": _allowed(request)}
    if http.status_code == HTTPStatus.BAD_REQUEST:
        return invalid([_NO_JSON]).response()  # FastAPI's word for a body that Python's parser gave up on
    code = _CODES.get(http.status_code, "error")
    return Problem(http.status_code, code, str(http.detail), headers=http.headers).response()


async def _conflict(_: Request, exc: Exception) -> JSONResponse:
    conflict = cast("Conflict", exc)
    return Problem(409, conflict.code, str(conflict), refid=conflict.refid).response()


async def _refused(_: Request, exc: Exception) -> JSONResponse:
    refused = cast("TokenRefused", exc)
    return Problem(502, "gateway_refused", str(refused), retcode=refused.retcode).response()


async def _not_sent(_: Request, exc: Exception) -> JSONResponse:
    return Problem(503, "gateway_unreachable", str(exc), headers=_RETRY_AFTER).response()


async def _in_doubt(_: Request, exc: Exception) -> JSONResponse:
    return Problem(504, "gateway_timeout", str(exc)).response()


async def _cursor(_: Request, exc: Exception) -> JSONResponse:
    return invalid([{"field": "cursor", "detail": str(exc)}]).response()


async def unavailable(request: Request, exc: Exception) -> JSONResponse:
    """Answer 503: the database is out of reach."""
    log.error("the database is out of reach", error=type(exc).__name__, exc_info=exc)
    starts = (request.method, request.url.path) == ("POST", "/v1/payments")
    sent = "; nothing was sent to K-Pay" if starts else ""
    detail = f"the database is out of reach{sent}; send the same request again"
    return Problem(503, "unavailable", detail, headers=_RETRY_AFTER).response()


async def mistake(_: Request, exc: Exception) -> JSONResponse:
    """Answer 500: nothing that a caller could do about it."""
    log.error("a mistake of this service", error=type(exc).__name__, exc_info=exc)
    return Problem(500, "internal", "a mistake of this service; it has been logged").response()


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    Problem: _problem,
    RequestValidationError: _validation,
    HTTPException: _http,
    Conflict: _conflict,
    TokenRefused: _refused,
    NotSent: _not_sent,
    InDoubt: _in_doubt,
    BadCursor: _cursor,
    # Statements that can never work are mistakes of ours, not an absent database.
    DataError: mistake,
    asyncpg.DataError: mistake,
    asyncpg.SyntaxOrAccessError: mistake,
    IntegrityError: mistake,
    ProgrammingError: mistake,
    SQLAlchemyError: mistake,
    DBAPIError: unavailable,
    asyncpg.IntegrityConstraintViolationError: mistake,
    asyncpg.InterfaceError: unavailable,
    asyncpg.InternalClientError: unavailable,
    asyncpg.PostgresError: unavailable,
    PoolTimeoutError: unavailable,
    TimeoutError: unavailable,
    OSError: unavailable,
    Exception: mistake,
}


async def answer_to(request: Request, exc: Exception) -> JSONResponse:
    """Return what is answered where `exc` was raised; the nearest class in its ancestry decides."""
    handler = next(_HANDLERS[kind] for kind in type(exc).__mro__ if kind in _HANDLERS)
    return await handler(request, exc)


def _with_problem(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Return `app.openapi` with the problem among its schemas, which the responses refer to, and a whole payment."""

    def openapi() -> dict[str, Any]:
        document = make()
        problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas |= problem.pop("$defs") | {"Problem": problem}
        schemas["Payment"]["examples"] = [EXAMPLE]  # whole again: FastAPI takes every null out of the document
        return document

    return openapi


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem; the nearest class in an exception's ancestry decides."""
    app.openapi = _with_problem(app.openapi)  # type: ignore[method-assign] # FastAPI's documented way
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
