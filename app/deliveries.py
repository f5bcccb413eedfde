"""Deliveries in the database: which are due, who is on the way with which, how they ended; the list and the retry.

A claim moves `next_at` past the longest attempt: whoever dies on the way is followed by somebody else then. Of one
payment only the first open delivery can be claimed, so its events arrive in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Integer,
    Interval,
    Text,
    and_,
    any_,
    bindparam,
    column,
    func,
    literal_column,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from app.bell import of_feed
from app.database import Database, Prepared
from app.feed import TOLD, UnknownEvent, parse_id
from app.herald import CHANNEL
from app.models import (
    IS_OPEN,
    IS_STILL_OPEN,
    NEVER,
    OUT_OF_SERVICE,
    Row,
    clients,
    deliveries,
    events,
    or_never,
    payments,
)

MOST_AT_ONCE = 1_000
_earlier = deliveries.alias("earlier")
_IS_BEHIND = and_(
    _earlier.c.refid == deliveries.c.refid, _earlier.c.seq < deliveries.c.seq, or_never(_earlier.c.next_at) < NEVER
)
_KEYS = select(deliveries.c.refid, deliveries.c.seq)
_IN_ORDER = (deliveries.c.refid, deliveries.c.seq)
"""Of a payment's events the earlier first, and rows locked in one order."""
# With a limit that is no parameter, and in the very order of the index: planned for all values, with statistics from
# before, PostgreSQL would otherwise read and sort all that is due, or all that ever was delivered. No client has more
# under way at once (`webhook_concurrency`).
_IN_LINE = (
    _KEYS.add_columns(deliveries.c.next_at)
    .outerjoin(_earlier, _IS_BEHIND)
    .where(deliveries.c.client == bindparam("client"), _earlier.c.refid.is_(None))
    .where(deliveries.c.next_at <= func.now() + bindparam("ahead", type_=Interval))
    .order_by(deliveries.c.next_at)
    .limit(literal_column(str(MOST_AT_ONCE), Integer))
    .subquery("in_line")
)
_SOON = Prepared(
    select(_IN_LINE.c.refid, _IN_LINE.c.seq, func.extract("epoch", _IN_LINE.c.next_at - func.now()).label("due_in"))
    .order_by(_IN_LINE.c.next_at)
    .limit(bindparam("most", type_=Integer))
)
_THESE = (
    func.unnest(bindparam("refids", type_=ARRAY(Text)), bindparam("seqs", type_=ARRAY(Integer)))
    .table_valued(column("refid", Text), column("seq", Integer))
    .render_derived("these")
)
_IN_THESE = (deliveries.c.refid == _THESE.c.refid) & (deliveries.c.seq == _THESE.c.seq)
_CLAIM = Prepared(
    update(deliveries)
    .where(_IN_THESE, or_never(deliveries.c.next_at) <= func.now())
    .values(next_at=func.now() + bindparam("lease", type_=Interval), attempts=deliveries.c.attempts + 1)
    .returning(deliveries.c.refid, deliveries.c.seq, deliveries.c.attempts)
)
_TOLD = Prepared(
    select(*TOLD)
    .join(payments, payments.c.refid == events.c.refid)
    .join(_THESE, (_THESE.c.refid == events.c.refid) & (_THESE.c.seq == events.c.seq))
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One delivery that this process is on the way with: the event, and which attempt this is."""

    event: Row
    attempt: int


def _these(rows: Sequence[Row]) -> dict[str, Any]:
    return {"refids": [row.refid for row in rows], "seqs": [row.seq for row in rows]}


async def claim(
    database: Database, client: str, most: int, *, lease: timedelta, ahead: float
) -> tuple[Sequence[Claim], float]:
    """Take up to `most` due deliveries of `client`; nobody else has them until `lease` is over.

    Returns them, and in how many seconds to look again: when another one is due, or `ahead` where none is by then.
    """
    async with database.direct() as by:
        soon = await _SOON.fetch(by, client=client, most=most, ahead=timedelta(seconds=ahead))
        due = [row for row in soon if row.due_in <= 0]
        rest = float(soon[len(due)].due_in) if len(due) < len(soon) else ahead
        if not due:
            return [], rest
        claimed = await _CLAIM.fetch(by, **_these(due), lease=lease)
        attempts = {(row.refid, row.seq): row.attempts for row in claimed}
        told = await _TOLD.fetch(by, **_these(claimed))
    return [Claim(row, attempts[row.refid, row.event_seq]) for row in told], rest


async def with_open(database: Database, names: Sequence[str]) -> Sequence[str]:
    """Return those of the clients that have something open."""
    ours = deliveries.c.client == any_(bindparam("these", type_=ARRAY(Text)))
    query = select(deliveries.c.client).where(ours, IS_OPEN)
    async with database.autocommit() as connection:
        return (await connection.execute(query.group_by(deliveries.c.client), {"these": names})).scalars().all()


async def park_all(database: Database, client: str, why: str) -> None:
    """Park what is open of a client that is not notified any more."""
    # Asked again for each batch: it may have been turned on meanwhile.
    out = select(clients.c.name).where(clients.c.name == client, OUT_OF_SERVICE)
    some = _KEYS.where(deliveries.c.client.in_(out), IS_OPEN).order_by(*_IN_ORDER)
    while True:
        async with database.transaction() as connection:
            rows = (await connection.execute(some.limit(MOST_AT_ONCE))).all()
            parked = update(deliveries).values(next_at=null(), parked_at=func.now(), error=why)
            those = parked.where(_IN_THESE, IS_STILL_OPEN, deliveries.c.client.in_(out))
            await connection.execute(those, _these(rows))
        if len(rows) < MOST_AT_ONCE:
            return


DeliveryState = Literal["waiting", "delivered", "parked"]


def state_of(row: Row) -> DeliveryState:
    """Return where a row of `deliveries` stands."""
    if row.next_at is not None:
        return "waiting"
    return "parked" if row.parked_at is not None else "delivered"


_IN_STATE: dict[DeliveryState, ColumnElement[bool]] = {
    "waiting": IS_OPEN,
    "delivered": ~IS_OPEN & deliveries.c.parked_at.is_(None),
    "parked": deliveries.c.parked_at.is_not(None),
}


async def page(
    database: Database,
    *,
    limit: int,
    state: DeliveryState | None = None,
    client: str | None = None,
    cursor: str | None = None,
) -> tuple[Sequence[Row], bool]:
    """Return deliveries, newest first, and whether there are more; `cursor` is the id of the last one seen.

    Raises `UnknownEvent` where that is none.
    """
    order = (deliveries.c.created_at, deliveries.c.refid, deliveries.c.seq)
    same = (events.c.refid == deliveries.c.refid) & (events.c.seq == deliveries.c.seq)
    query = select(deliveries, events.c.type).join(events, same)
    if client is not None:
        query = query.where(deliveries.c.client == client)
    if state is not None:
        query = query.where(_IN_STATE[state])
    async with database.autocommit() as connection:
        if cursor is not None:
            refid, seq = parse_id(cursor)
            at = select(deliveries.c.created_at).where(deliveries.c.refid == refid, deliveries.c.seq == seq)
            at = at if client is None else at.where(deliveries.c.client == client)
            created_at = (await connection.execute(at)).scalar_one_or_none()
            if created_at is None:
                raise UnknownEvent
            query = query.where(tuple_(*order) < tuple_(created_at, refid, seq))
        rows = (await connection.execute(query.order_by(*(each.desc() for each in order)).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit


async def is_there(database: Database, client: str, id_: str) -> bool:
    """Whether `client` has a delivery of this event. Raises `UnknownEvent`."""
    refid, seq = parse_id(id_)
    query = _KEYS.where(deliveries.c.refid == refid, deliveries.c.seq == seq, deliveries.c.client == client)
    async with database.autocommit() as connection:
        return (await connection.execute(query)).one_or_none() is not None


async def retry(database: Database, *, client: str | None = None, id_: str | None = None) -> int:
    """Send parked deliveries again, or one that is over, by its id; return how many. Raises `UnknownEvent`."""
    async with database.autocommit() as connection:
        began = (await connection.execute(select(func.now()))).scalar_one()
    # What is parked anew meanwhile (a receiver that is disabled) is not taken up again.
    chosen: list[ColumnElement[bool]] = [deliveries.c.parked_at <= began]
    still: list[ColumnElement[bool]] = [or_never(deliveries.c.parked_at) <= began]
    if id_ is not None:
        refid, seq = parse_id(id_)
        chosen = still = [deliveries.c.refid == refid, deliveries.c.seq == seq, ~IS_OPEN]
    if client is not None:
        chosen, still = ([*each, deliveries.c.client == client] for each in (chosen, still))
    anew = {"next_at": func.now(), "parked_at": null(), "delivered_at": null(), "attempts": 0, "error": null()}
    again = update(deliveries).values(**anew).where(_IN_THESE, *still).returning(deliveries.c.client)
    count = 0
    while True:
        async with database.transaction() as connection:
            rows = (await connection.execute(_KEYS.where(*chosen).order_by(*_IN_ORDER).limit(MOST_AT_ONCE))).all()
            of = (await connection.execute(again, _these(rows))).scalars().all()
        async with database.autocommit() as connection:
            for name in set(of):
                await connection.execute(select(func.pg_notify(CHANNEL, of_feed(name))))
        count += len(of)
        if len(rows) < MOST_AT_ONCE:
            return count
