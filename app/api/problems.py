"""Errors as `application/problem+json` (RFC 9457). The one table from what went wrong to an HTTP status.

No answer repeats what was sent: a rejected value may be a secret.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError
from starlette.exceptions import HTTPException

from app.orders import Conflict
from app.reads import BadCursor

log = structlog.get_logger()

_RETRY_AFTER = {"Retry-After": "1"}
_OUR_MISTAKES = (DataError, IntegrityError, ProgrammingError)
_CODES = {404: "not_found", 405: "method_not_allowed", 400: "unreadable_body", 413: "too_large", 422: "invalid_request"}


class FieldFault(BaseModel):
    """One field of a request that is at fault."""

    field: str = Field(description="The member's name, or the parameter's", examples=["amount"])
    detail: str = Field(description="What would be right", examples=["must be a whole number greater than 0"])


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(examples=["urn:kpayd:invalid_request"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["amount: must be a whole number greater than 0"])
    code: str = Field(description="What programs look at", examples=["invalid_request"])
    refid: str | None = Field(default=None, description="The payment that is in the way, on a 409")
    retcode: str | None = Field(default=None, description="K-Pay's code, where K-Pay said something")
    errors: list[FieldFault] | None = Field(default=None, description="Every field at fault, on a 422")


class Problem(Exception):  # noqa: N818 - RFC 9457's word
    """An answer other than success, raised where it is noticed. `code` is what programs look at."""

    def __init__(  # noqa: PLR0913 - the members of a problem
        self,
        status: int,
        code: str,
        detail: str,
        *,
        refid: str | None = None,
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
        if refid is not None:
            self.body["refid"] = refid
        if errors:
            self.body["errors"] = list(errors)

    def response(self) -> JSONResponse:
        """Return the problem as an answer."""
        return JSONResponse(self.body, self.status, self.headers, "application/problem+json")


def invalid(errors: Sequence[Mapping[str, str]]) -> Problem:
    """Return the 422 that names every field at fault."""
    detail = "; ".join(f"{error['field']}: {error['detail']}" for error in errors)
    return Problem(422, "invalid_request", detail, errors=errors)


def _fault(error: Mapping[str, Any]) -> dict[str, str]:
    loc = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
    if error["type"] == "json_invalid":
        return {"field": "body", "detail": "must be JSON"}
    detail = {
        "missing": "is required",
        "extra_forbidden": "is not a member of this request",
        "model_attributes_type": "must be a JSON object",
    }.get(error["type"], str(error["msg"]).removeprefix("Value error, "))
    return {"field": ".".join(loc)[:100] or "body", "detail": detail}


def _unavailable(exc: BaseException) -> Problem:
    log.error("the database is out of reach", error=type(exc).__name__, exc_info=exc)
    detail = "the database is out of reach: nothing was recorded; try again"
    return Problem(503, "unavailable", detail, headers=_RETRY_AFTER)


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, exc: Problem) -> JSONResponse:
        return exc.response()

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, exc: RequestValidationError) -> JSONResponse:
        return invalid([_fault(error) for error in exc.errors()]).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, exc: HTTPException) -> JSONResponse:
        code = _CODES.get(exc.status_code, "error")
        return Problem(exc.status_code, code, str(exc.detail), headers=exc.headers).response()

    @app.exception_handler(Conflict)
    async def conflict(_: Request, exc: Conflict) -> JSONResponse:
        return Problem(409, exc.code, str(exc), refid=exc.refid).response()

    @app.exception_handler(BadCursor)
    async def cursor(_: Request, exc: BadCursor) -> JSONResponse:
        return invalid([{"field": "cursor", "detail": str(exc)}]).response()

    @app.exception_handler(SQLAlchemyError)
    async def database(_: Request, exc: SQLAlchemyError) -> JSONResponse:
        if isinstance(exc, _OUR_MISTAKES):
            log.error("a statement of ours is wrong", exc_info=exc)
            return Problem(500, "internal", "a mistake of this service; it has been logged").response()
        return _unavailable(exc).response()

    @app.exception_handler(TimeoutError)
    async def timed_out(_: Request, exc: TimeoutError) -> JSONResponse:
        return _unavailable(exc).response()

    @app.exception_handler(OSError)
    async def unreachable(_: Request, exc: OSError) -> JSONResponse:
        return _unavailable(exc).response()

    @app.exception_handler(Exception)
    async def mistake(_: Request, __: Exception) -> JSONResponse:
        # Starlette raises it again after this answer, and the server logs it.
        return Problem(500, "internal", "a mistake of this service; it has been logged").response()
