"""Payments over REST: start, read, list, check, timeline."""

import re
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from app import reads
from app.api.context import Context, Parts, Reader, Writer
from app.api.problems import PROBLEM, Problem, invalid
from app.api.schemas import REFID_PATTERN, Payment, PaymentPage, PaymentQuery, PaymentRequest, Timeline
from app.clients import Client
from app.domain import FINAL
from app.models import Row

LOOK_EVERY = 0.5
LONGEST_WAIT = 60


_MEANINGS = {
    401: "No valid key",
    403: "The key lacks the scope",
    404: "No such payment of yours",
    408: "The body did not arrive in time",
    409: "The refid, the Idempotency-Key or the order is taken; or the payment is another gateway's",
    413: "The body is over 64 KiB",
    422: "Some fields are at fault; `errors` names each",
    429: "Too many wrong keys came from this address",
    503: "Behind, or the database is out of reach: nothing was recorded, and nothing was sent; try again",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


router = APIRouter(prefix="/v1", tags=["payments"], responses=_problems(401, 403, 408, 413, 422, 429, 503))

Refid = Annotated[str, Path(description="The payment's refid")]


@router.post(
    "/payments",
    status_code=201,
    responses={200: {"model": Payment, "description": "The same request was made before"}, **_problems(409)},
)
async def start(
    body: PaymentRequest,
    parts: Parts,
    client: Writer,
    response: Response,
    idempotency_key: Annotated[
        str | None, Header(pattern=r"^[!-~]([ -~]{0,253}[!-~])?$", description="The same key is the same payment")
    ] = None,
) -> Payment:
    """Start a payment. 201 also when K-Pay refused it or its outcome is not known yet: read `status`.

    200 with the same payment when the same request is repeated (same `refid`, or same `Idempotency-Key`). When you
    get no answer at all, repeat the request with the same `refid` or key: nobody is charged twice.
    """
    settings = parts.settings
    if faults := body.faults(allow_usd=settings.allow_usd, allow_loopback=settings.is_local):
        raise invalid(faults)
    started = await parts.payments.start(body.order(), client.name, idempotency_key)
    response.status_code = 201 if started.fresh else 200
    response.headers["Location"] = f"/v1/payments/{started.payment.refid}"
    return Payment.of(started.payment)


@router.get("/payments")
async def list_payments(wanted: Annotated[PaymentQuery, Query()], parts: Parts, client: Reader) -> PaymentPage:
    """List your payments, newest first."""
    filters = wanted.model_dump(exclude={"limit", "cursor"})
    page = await reads.page(
        parts.database, reads.Filter(**filters), limit=wanted.limit, cursor=wanted.cursor, client=client.name
    )
    return PaymentPage(items=[Payment.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/payments/{refid}", responses=_problems(404))
async def read(
    refid: Refid,
    parts: Parts,
    client: Reader,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for a final status")] = 0,
) -> Payment:
    """Read a payment; with `wait`, answer when it is final or the time is up."""
    until = time.monotonic() + wait
    while True:
        row = await _of(parts, client, refid)
        left = until - time.monotonic()
        if row.status in FINAL or left <= 0 or parts.stopping.is_set():
            return Payment.of(row)
        await parts.bell.changed_within(refid, min(left, LOOK_EVERY))


@router.post("/payments/{refid}/check", responses=_problems(404, 409))
async def check(refid: Refid, parts: Parts, client: Reader) -> Payment:
    """Ask K-Pay now and answer with the payment after that.

    Where K-Pay cannot be asked, the payment is as it was: `checked_at` tells when K-Pay last answered.
    """
    row = await _of(parts, client, refid)
    if row.gateway != parts.settings.gateway:
        raise Problem(409, "other_gateway", "this payment belongs to another gateway, which is not asked from here")
    return Payment.of(await parts.reconciler.check_now(row))


@router.get("/payments/{refid}/events", responses=_problems(404))
async def timeline(refid: Refid, parts: Parts, client: Reader) -> Timeline:
    """List every status change and every piece of evidence, oldest first."""
    row = await _of(parts, client, refid)
    return Timeline.of(await reads.timeline(parts.database, row.refid))


async def _of(parts: Context, client: Client, refid: str) -> Row:
    row = await reads.one(parts.database, refid, client.name) if re.fullmatch(REFID_PATTERN, refid) else None
    if row is None:
        raise Problem(404, "not_found", "there is no such payment of yours")
    return row
