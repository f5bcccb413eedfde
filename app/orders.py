"""Recording a new payment: one transaction that inserts it, or finds the one that is there already.

The primary key is the guard: of any number of callers with the same `refid`, one inserts, and only that one sends.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Interval, Text, and_, bindparam, cast, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from app.database import ANSWER_SECONDS, CommitInDoubt, Database, Direct, Prepared
from app.domain import OPEN, Source, Status
from app.jitter import jitter
from app.kpay.request import SavedCard
from app.models import Row, claims, payments
from app.timeline import note

log = structlog.get_logger()

IDEMPOTENCY_KEY = "idempotency-key"
ORDER = "orderid"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPayment:
    """A payment as its caller asks for it, validated and complete but for a `refid` that may be left out."""

    refid: str | None = None
    amount: int
    currency: str
    pmethod: str
    bankid: str
    msisdn: str
    email: str
    details: str
    cname: str
    cnumber: str
    redirecturl: str
    logourl: str | None = None
    orderid: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    card: SavedCard | None = None

    def recorded(self) -> dict[str, Any]:
        """Return what is written down of it: all but the saved card."""
        return {name: getattr(self, name) for name in _RECORDED}

    def fingerprint(self) -> bytes:
        """Return a hash of all that is asked for, less the name: with the same one, two requests are the same.

        The `cvv` is not in it: three digits can be tried out.
        """
        asked = self.recorded()
        del asked["refid"]
        if self.card is not None:
            asked["token"] = self.card.token.get_secret_value()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()


_RECORDED = tuple(name for name in NewPayment.__slots__ if name != "card")


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every payment when it is recorded; times in seconds."""

    gateway: str
    gateway_timeout: float
    expire_after: float
    first_check: float


class Conflict(Exception):  # noqa: N818 - the name says what it is
    """A name is taken. `refid` is the payment that has it, where the caller may know it."""

    def __init__(self, code: str, detail: str, refid: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.refid = refid


def new_refid() -> str:
    """Return a fresh refid of 24 letters and digits that sorts by time: neighbours in time are neighbours on disk."""
    milliseconds = time.time_ns() // 1_000_000
    return base64.b32hexencode(milliseconds.to_bytes(6, "big") + secrets.token_bytes(9)).decode()


def derived_refid(client: str, idempotency_key: str) -> str:
    """Return the refid that belongs to a client's `Idempotency-Key`, always the same.

    So a repeated request finds its payment even where the database has lost the first one (a failover): K-Pay knows
    the refid and does not charge twice. The label is no secret; a rotated one would make a key mean another payment.
    """
    digest = hmac.digest(b"kpayd refid", f"{client}\0{idempotency_key}".encode(), hashlib.sha256)
    return base64.b32hexencode(digest[:15]).decode()


def _after(name: str) -> ColumnElement[datetime]:
    return func.now() + bindparam(name, type_=Interval)


_GIVEN = (*_RECORDED, "client", "fingerprint", "attempt", "gateway", "status", "last_seq")
_INSERT = Prepared(
    upsert(payments)
    .values(
        {name: bindparam(name) for name in _GIVEN}
        | {"metadata": cast(bindparam("metadata", type_=Text), JSONB)}
        | {"created_at": func.now(), "updated_at": func.now()}
        | {"doubt_from": _after("call"), "expires_at": _after("life"), "next_check_at": _after("first")}
    )
    .on_conflict_do_nothing()
    .returning(payments)
)

# Locked, as all that is repeated to a caller: a commit then waits for a standby that the first one may not have had.
_ROW = select(payments).where(payments.c.refid == bindparam("of")).with_for_update()
_THERE = Prepared(_ROW)
_LANDED = Prepared(_ROW.where(payments.c.attempt == bindparam("attempt")))
_NAME = and_(
    claims.c.client == bindparam("ours"), claims.c.kind == bindparam("of_kind"), claims.c.value == bindparam("name")
)
_CLAIM = Prepared(
    upsert(claims)
    .values(client=bindparam("ours"), kind=bindparam("of_kind"), value=bindparam("name"), refid=bindparam("claimant"))
    .on_conflict_do_nothing()
)
_HOLDER = Prepared(select(claims.c.refid).where(_NAME).with_for_update())
_TAKE_OVER = Prepared(update(claims).where(_NAME).values(refid=bindparam("claimant")))
_TAKEN = (Status.SUCCEEDED, *sorted(OPEN))
_HAS_ORDER = Prepared(
    select(payments.c.refid, payments.c.status)
    .where(payments.c.client == bindparam("ours"), payments.c.orderid == bindparam("name"))
    .where(payments.c.refid != bindparam("claimant"), payments.c.status.in_([literal(each) for each in _TAKEN]))
    .order_by((payments.c.status == Status.SUCCEEDED).desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Who tries to record what name: whoever's `attempt` stands in the row is the one that may send it."""

    refid: str
    client: str
    terms: Terms
    objection: Exception | None
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))


async def record(
    database: Database,
    order: NewPayment,
    client: str,
    idempotency_key: str | None,
    terms: Terms,
    *,
    objection: Exception | None = None,
) -> tuple[Row, bool]:
    """Insert the payment and commit; return it and True, or the one that the same request made before and False.

    Raises `Conflict` where the refid, the key or the order belongs to another payment, and `objection` where the
    payment would be new; then nothing is written. An
    error on COMMIT is followed by a look whether it landed: only then is it an error of this function, too.
    """
    refid = order.refid or (derived_refid(client, idempotency_key) if idempotency_key else new_refid())
    mine = _Attempt(refid, client, terms, objection)
    async with asyncio.timeout(ANSWER_SECONDS):
        try:
            return await _record(database, order, idempotency_key, mine)
        except CommitInDoubt:
            async with database.direct_transaction() as by:
                row = await _LANDED.first(by, of=refid, attempt=mine.attempt)
            if row is None:
                raise
            log.warning("COMMIT failed and had landed", refid=refid)
            return row, True


async def _record(
    database: Database, order: NewPayment, idempotency_key: str | None, mine: "_Attempt"
) -> tuple[Row, bool]:
    refid, client = mine.refid, mine.client
    async with database.direct_transaction() as by:
        if idempotency_key is not None:
            holder = await _claim(by, client, IDEMPOTENCY_KEY, idempotency_key, refid)
            if order.refid is not None and holder != refid:
                raise Conflict("idempotency_key_reused", "this Idempotency-Key was used for another refid", holder)
            refid = holder
        row = await _insert(by, refid, order, mine)
        if row is None:
            return await _existing(by, refid, order, client, by_key=order.refid is None), False
        if mine.objection is not None:
            raise mine.objection
        if order.orderid is not None:
            await _claim_order(by, client, order.orderid, refid)
    return row, True


async def _insert(by: Direct, refid: str, order: NewPayment, mine: "_Attempt") -> Row | None:
    terms = mine.terms
    values = order.recorded() | {
        "metadata": json.dumps(order.metadata),
        "refid": refid,
        "client": mine.client,
        "fingerprint": order.fingerprint(),
        "attempt": mine.attempt,
        "gateway": terms.gateway,
        "status": Status.CREATED,
        "last_seq": 1,
        "call": timedelta(seconds=terms.gateway_timeout),
        "life": timedelta(seconds=terms.expire_after),
        "first": timedelta(seconds=min(terms.first_check * jitter(), terms.expire_after)),
    }
    row = await _INSERT.first(by, **values)
    if row is not None:
        created = {"refid": refid, "seq": 1, "type": "payment.created"}
        await note(by, created | {"source": Source.CALLER, "status": Status.CREATED}, row)
    return row


async def _existing(by: Direct, refid: str, order: NewPayment, client: str, *, by_key: bool) -> Row:
    [row] = await _THERE.fetch(by, of=refid)
    if row.client != client:
        raise Conflict("refid_used", "this refid is taken")
    if row.fingerprint != order.fingerprint():
        if by_key:
            raise Conflict("idempotency_key_reused", "this Idempotency-Key was used with other content", refid)
        raise Conflict("refid_used", "this refid was used with other content", refid)
    return row


async def _claim(by: Direct, client: str, kind: str, value: str, refid: str) -> str:
    """Claim a name for `refid` and return who holds it: `refid`, or the one that was first. Waits for one under way."""
    name = {"ours": client, "of_kind": kind, "name": value}
    await _CLAIM.fetch(by, **name, claimant=refid)
    [holder] = await _HOLDER.fetch(by, **name)
    return str(holder.refid)


async def _claim_order(by: Direct, client: str, orderid: str, refid: str) -> None:
    """Make `refid` the order's payment, unless another one is open or paid; whoever comes at once waits in line."""
    holder = await _claim(by, client, ORDER, orderid, refid)
    if holder == refid:
        return
    mine = {"ours": client, "name": orderid, "claimant": refid}
    other = await _HAS_ORDER.first(by, **mine)
    if other is not None and other.status == Status.SUCCEEDED:
        raise Conflict("order_paid", "this order has been paid", other.refid)
    if other is not None:
        raise Conflict("order_open", "this order has a payment under way", other.refid)
    await _TAKE_OVER.fetch(by, **mine, of_kind=ORDER)
