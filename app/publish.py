"""Publishing: gives every committed change its place in its client's feed, and makes the deliveries that tell of it.

A serial number is handed out before COMMIT, so a reader that goes by it would skip what a slower transaction commits
later. Here the outbox is read after the commits, by one process at a time: what has no position yet gets the next
ones, so positions appear in their order and a reader that has seen one has seen all before it.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy import (
    BigInteger,
    Integer,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from app.bell import OUTBOX, Bell, of_feed
from app.database import UNAVAILABLE, Database, Direct, Prepared
from app.domain import EVIDENCE
from app.models import IS_STILL_OPEN, Row, clients, deliveries, events, feed, payments

log = structlog.get_logger()

NOTIFIED = frozenset(f"payment.{what}" for what in ("pending", "succeeded", "failed", "expired", "needs_review"))
"""The types of events that a client with a webhook URL is sent."""

LOOK_EVERY = 1.0
"""Seconds between two looks into the outbox that no bell asked for."""

_BATCH = 500

# Not parameters: a plan for all values would not know that this is what the outbox's index has, nor how few are wanted.
_ONE, _SOME = literal_column("1", Integer), literal_column(str(_BATCH), Integer)
_IN_OUTBOX = events.c.position.is_(None) & (events.c.type != literal_column(f"'{EVIDENCE}'"))
# Whoever dies while it holds the lock must not hold up everybody until the network notices.
_LET_GO = func.set_config("idle_in_transaction_session_timeout", "5s", true()).label("let_go")
_LAST = Prepared(select(feed.c.last, feed.c.since, _LET_GO).where(feed.c.id == 1).with_for_update())
_OLDEST = select(events.c.refid).where(_IN_OUTBOX).order_by(events.c.created_at)
_ANY = Prepared(_OLDEST.limit(_ONE))
_CHANGED = Prepared(_OLDEST.limit(_SOME))
_NEWS = Prepared(_OLDEST.where(events.c.created_at >= bindparam("since")).limit(_SOME))
_FRESH = Prepared(
    select(events.c.refid, events.c.seq, events.c.created_at, events.c.type, payments.c.client)
    .join(payments, payments.c.refid == events.c.refid)
    .where(events.c.refid == any_(bindparam("refids", type_=ARRAY(Text))), events.c.type != EVIDENCE)
    .where(func.coalesce(events.c.position, 0) == 0)  # not by the outbox's index: see `or_never`
    .order_by(events.c.refid, events.c.seq)
)
_GIVEN = (
    func.unnest(
        bindparam("refids", type_=ARRAY(Text)),
        bindparam("seqs", type_=ARRAY(Integer)),
        bindparam("clients", type_=ARRAY(Text)),
        bindparam("positions", type_=ARRAY(BigInteger)),
    )
    .table_valued(column("refid", Text), column("seq", Integer), column("client", Text), column("position", BigInteger))
    .render_derived("given")
)
_NUMBER = Prepared(
    update(events)
    .where(events.c.refid == _GIVEN.c.refid, events.c.seq == _GIVEN.c.seq)
    .values(position=_GIVEN.c.position, client=_GIVEN.c.client)
)
# Behind one that has failed it waits as long: what is due can then be claimed.
_HELD_UP = (
    select(deliveries.c.refid, func.max(deliveries.c.next_at).label("until"))
    .where(deliveries.c.refid == any_(bindparam("refids", type_=ARRAY(Text))))
    .where(IS_STILL_OPEN, deliveries.c.error.is_not(None))
    .group_by(deliveries.c.refid)
    .subquery("held_up")
)
_DELIVER = Prepared(
    insert(deliveries).from_select(
        ["refid", "seq", "client", "next_at"],
        select(_GIVEN.c.refid, _GIVEN.c.seq, _GIVEN.c.client, func.coalesce(_HELD_UP.c.until, func.now()))
        .join(clients, clients.c.name == _GIVEN.c.client)
        .join(events, (events.c.refid == _GIVEN.c.refid) & (events.c.seq == _GIVEN.c.seq))
        .outerjoin(_HELD_UP, _HELD_UP.c.refid == _GIVEN.c.refid)
        .where(
            events.c.type == any_(cast(sorted(NOTIFIED), ARRAY(Text))),
            events.c.created_at >= clients.c.webhook_since,
            clients.c.webhook_url.is_not(None),
            clients.c.revoked_at.is_(None),
        ),
    )
)
_BEGIN = Prepared(
    upsert(feed)
    .from_select(["id", "last"], select(literal(1), func.coalesce(func.max(events.c.position), 0)))
    .on_conflict_do_nothing()
)
_MOVE_ON = Prepared(update(feed).where(feed.c.id == 1).values(last=bindparam("upto")))


class Publisher:
    """Empties the outbox. Any number may run; they take turns."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def run(self, stopping: asyncio.Event) -> None:
        """Publish whatever has been committed until `stopping`."""
        with self._bell.listen(OUTBOX) as outbox:
            while not stopping.is_set():
                try:
                    emptied = not await self.publish()
                except UNAVAILABLE as exc:
                    log.error("events could not be published", error=type(exc).__name__)  # noqa: TRY400 - every second
                    await asyncio.sleep(1)
                    continue
                if emptied:
                    await outbox.within(LOOK_EVERY)

    async def publish(self) -> int:
        """Publish one batch, ring for the clients concerned and return how many events it was."""
        async with self._database.direct() as by:
            if await _ANY.first(by) is None:
                return 0
        async with self._database.direct_transaction() as by:
            last, since = await _place(by)
            fresh = await _fresh(by, since)
            if fresh:
                given = {
                    "refids": [event.refid for event in fresh],
                    "seqs": [event.seq for event in fresh],
                    "clients": [event.client for event in fresh],
                    "positions": list(range(last + 1, last + 1 + len(fresh))),
                }
                await _NUMBER.fetch(by, **given)
                await _DELIVER.fetch(by, **given)
                await _MOVE_ON.fetch(by, upto=last + len(fresh))
        for client in {event.client for event in fresh}:
            self._bell.announce(of_feed(client))
        return len(fresh)


async def _place(by: Direct) -> tuple[int, datetime]:
    """Lock the feed and return the last position given out, and since when there is a feed.

    Its row may be missing (data restored without it): it is made again from the positions that there are.
    """
    row = await _LAST.first(by)
    if row is None:
        await _BEGIN.fetch(by)
        [row] = await _LAST.fetch(by)
    return row.last, row.since


async def _fresh(by: Direct, since: datetime) -> Sequence[Row]:
    """Return what has no position yet, in the order of the commits and, for one payment, of its own numbers.

    Whole payments, so that no event is numbered before an earlier one of its payment. History from before there was a
    feed comes when there are no news: it must not hold them up.
    """
    changed = await _NEWS.fetch(by, since=since) or await _CHANGED.fetch(by)
    fresh = await _FRESH.fetch(by, refids=sorted({event.refid for event in changed}))
    latest: dict[str, datetime] = {}

    def when(event: Row) -> tuple[datetime, str, int]:
        # A clock that was set back must not turn a payment's events round.
        latest[event.refid] = max(event.created_at, latest.get(event.refid, event.created_at))
        return latest[event.refid], event.refid, event.seq

    return sorted(fresh, key=when)
