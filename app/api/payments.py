"""Payments over REST: start, read, list, check, timeline."""

import re
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from app import reads
from app.api.admission import overloaded, slot_of
from app.api.context import Context, Parts, Reader, Writer, still_valid, unauthorized
from app.api.problems import Problem, documented, everywhere, invalid
from app.api.schemas import REFID_PATTERN, PaymentPage, PaymentQuery, PaymentRequest, Timeline
from app.api.waiting import LONGEST_WAIT, until_final
from app.body import Payment
from app.clients import Client
from app.database import UNAVAILABLE
from app.domain import FINAL
from app.models import Row

router = APIRouter(prefix="/v1", tags=["payments"], responses=everywhere())

Refid = Annotated[str, Path(description="The payment's refid", examples=["order-1042-1"])]
Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for a final status")]


@router.post(
    "/payments",
    status_code=201,
    operation_id="start_payment",
    response_description="The payment, recorded now; `status` tells how it stands",
    responses={
        200: {"model": Payment, "description": "The payment that the same request started before, as it stands now"},
        **documented("refid_used", "idempotency_key_reused", "order_open", "order_paid"),
    },
)
async def start(
    request: Request,
    body: PaymentRequest,
    parts: Parts,
    client: Writer,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[!-~]([ -~]{0,253}[!-~])?$",
            description="The same key is the same payment; any printable text of your own, e.g. your order and which "
            "attempt it is",
        ),
    ] = None,
    wait: Wait = 0,
) -> Payment:
    """Start a payment. 201 also when K-Pay refused it or its outcome is not known yet: read `status`.

    With `wait`, the answer comes when the payment is final or the time is up.
    200 with the same payment when the same request is repeated (same `refid`, or same `Idempotency-Key`). When you
    get no answer at all, repeat the request with the same `refid` or key: nobody is charged twice.
    """
    settings = parts.settings
    faults = body.faults(
        allow_usd=settings.allow_usd, allow_loopback=settings.is_local, redirect_hosts=client.redirect_hosts
    )
    objection = invalid(faults) if faults else None
    started = await parts.payments.start(body.order(), client.name, idempotency_key, objection)
    response.status_code = 201 if started.fresh else 200
    response.headers["Location"] = f"/v1/payments/{started.payment.refid}"
    row = started.payment
    if wait and row.status not in FINAL and slot_of(request).is_waiting():
        with suppress(*UNAVAILABLE):  # it was sent: whatever happens now, the caller gets the payment
            row = await until_final(request, parts, row, wait)
    return Payment.of(row)


@router.get("/payments", operation_id="list_payments", response_description="A page of payments")
async def list_payments(wanted: Annotated[PaymentQuery, Query()], parts: Parts, client: Reader) -> PaymentPage:
    """List your payments, newest first."""
    filters = wanted.model_dump(exclude={"limit", "cursor"})
    page = await reads.page(
        parts.database, reads.Filter(**filters), limit=wanted.limit, cursor=wanted.cursor, client=client.name
    )
    return PaymentPage(items=[Payment.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get(
    "/payments/{refid}",
    operation_id="read_payment",
    response_description="The payment",
    responses=documented("not_found"),
)
async def read(
    request: Request,
    refid: Refid,
    parts: Parts,
    client: Reader,
    wait: Wait = 0,
) -> Payment:
    """Read a payment; with `wait`, answer when it is final or the time is up."""
    row = await own(parts, client, refid)
    if wait and row.status not in FINAL:
        if not slot_of(request).is_waiting():
            raise overloaded()
        row = await until_final(request, parts, row, wait)
        if not await still_valid(request, parts):
            raise unauthorized()
    return Payment.of(row)


@router.post(
    "/payments/{refid}/check",
    operation_id="check_payment",
    response_description="The payment after K-Pay was asked",
    responses=documented("not_found", "other_gateway"),
)
async def check(refid: Refid, parts: Parts, client: Reader) -> Payment:
    """Ask K-Pay now and answer with the payment after that.

    Where K-Pay cannot be asked, the payment is as it was: `checked_at` tells when K-Pay last answered.
    """
    row = await own(parts, client, refid)
    if row.gateway != parts.settings.gateway:
        raise Problem(409, "other_gateway", "this payment belongs to another gateway, which is not asked from here")
    return Payment.of(await parts.reconciler.check_now(row))


@router.get(
    "/payments/{refid}/events",
    operation_id="read_timeline",
    response_description="The timeline",
    responses=documented("not_found"),
)
async def timeline(refid: Refid, parts: Parts, client: Reader) -> Timeline:
    """List every status change and every piece of evidence, oldest first."""
    row = await own(parts, client, refid)
    return Timeline.of(await reads.timeline(parts.database, row.refid))


async def own(parts: Context, client: Client, refid: str) -> Row:
    """Return a payment of the caller's, with the database's time; raises a 404 where there is none."""
    row = await parts.lookup.one(refid, client.name) if re.fullmatch(REFID_PATTERN, refid) else None
    if row is None:
        raise Problem(404, "not_found", "there is no such payment of yours")
    return row
