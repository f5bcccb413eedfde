"""Finds out by looking what no bell told: one question for all who wait, however many they are."""

import asyncio
from collections.abc import Sequence

import structlog
from sqlalchemy import Text, any_, bindparam, select
from sqlalchemy.dialects.postgresql import ARRAY

from app.bell import Bell, of_feed, of_payment
from app.database import UNAVAILABLE, Database
from app.domain import FINAL
from app.models import events, feed, payments

log = structlog.get_logger()

_AT_ONCE = 1_000
_STEP = 0.25

_THESE = bindparam("these", type_=ARRAY(Text))
_FINAL = select(payments.c.refid).where(payments.c.refid == any_(_THESE), payments.c.status.in_(FINAL))
_LAST = select(feed.c.last)
_GROWN = (
    select(events.c.client)
    .where(events.c.client == any_(_THESE), events.c.position > bindparam("seen"))
    .group_by(events.c.client)
)


async def watch(database: Database, bell: Bell) -> None:
    """Ring for payments that are final and feeds that have grown, until cancelled.

    Every `bell.patience` seconds: half a second where other processes cannot be heard, else a few.
    """
    clock = asyncio.get_running_loop().time
    looked_at, heard = clock(), False
    seen: int | None = None
    while True:
        await asyncio.sleep(_STEP)
        if clock() - looked_at < bell.patience and heard == bell.hears_others:
            continue
        looked_at, heard = clock(), bell.hears_others  # what was said before it could be heard is found now
        try:
            await _look_at_payments(database, bell)
            seen = await _look_at_feeds(database, bell, seen)
        except UNAVAILABLE as exc:
            log.warning("waiting calls could not be looked after", error=type(exc).__name__)


async def _look_at_payments(database: Database, bell: Bell) -> None:
    for refids in _parts(bell.listened_payments()):
        async with database.autocommit() as connection:
            for refid in (await connection.execute(_FINAL, {"these": refids})).scalars():
                bell.ring(of_payment(refid))


async def _look_at_feeds(database: Database, bell: Bell, seen: int | None) -> int | None:
    """Ring the feeds that have grown since `seen`, and return the position until which they were looked at."""
    clients = bell.listened_feeds()
    if not clients:
        return None
    async with database.autocommit() as connection:
        last = int((await connection.execute(_LAST)).scalar_one_or_none() or 0)
        grown = clients
        if seen is not None:
            grown = (await connection.execute(_GROWN, {"these": clients, "seen": seen})).scalars().all()
    for client in grown:
        bell.ring(of_feed(client))
    return last


def _parts(names: Sequence[str]) -> Sequence[Sequence[str]]:
    return [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
