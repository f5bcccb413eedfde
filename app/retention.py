"""Retention: takes personal data out of payments that are long over, and keeps what finance and disputes need.

Kept for good: refid, tid, momtransactionid, amount, method, order, statuses, times and K-Pay's codes. Taken out: the
payer's number, address, name and account, what the caller wrote, and the raw bodies, which hold all of these. What
comes later (a postback, a late success) makes a payment one to prune again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal,
    null,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Database, sqlstate
from app.domain import FINAL
from app.models import Row, bodies, events, evidence, payments
from app.months import PATIENCE, make, name_of, over, there

BATCH = 500

_KEPT_IN = (evidence, bodies)
"""Where raw bodies lie: those that the versions before schema 0007 kept, and ours."""

_LEFT = {
    "42501": "this role does not own the table",
    "55P03": "somebody holds the table",
    "57014": "too large to be looked through within a second",
}
"""Why a month is left as it is, by SQLSTATE: the next run, or `kpayd migrate`, comes again."""


@dataclass(slots=True)
class Pruned:
    """What was, or would be, taken out: payments, and raw bodies of payments that are not in the database.

    `months` whose bodies are all gone were emptied; how many a dry run would empty is not known before. `left` are
    those that could not be emptied or made, each with the reason.
    """

    payments: int = 0
    strays: int = 0
    months: int = 0
    left: list[str] = field(default_factory=list)


async def prune(database: Database, older_than: timedelta, *, dry_run: bool = False) -> Pruned:
    """Take personal data out of what ended longer ago than `older_than`. Small commits, so that nobody waits for it.

    Left alone, however old: a payment that is still looked at, and one that asks for a review. Running it twice, or
    stopping it half-way, does no harm. In the end the months to come are made (app.months).
    """
    async with database.autocommit() as connection:
        before = (await connection.execute(select(func.now() - older_than))).scalar_one()
    pruned = Pruned()
    last: Row | None = None
    while True:
        async with database.transaction() as connection:
            batch = await _over(connection, before, last)
            refids = sorted(row.refid for row in batch)
            pruned.payments += len(refids) if dry_run else await _take_out(connection, refids, before)
        if not batch:
            break
        last = batch[-1]
    for table in _KEPT_IN:
        pruned.strays += await _strays(database, table, before, dry_run=dry_run)
    if not dry_run:
        with _or_left(pruned, "months to come"):
            async with database.unbounded() as connection:
                await connection.run_sync(make)
        await _empty_months(database, before, pruned)
    return pruned


def _is_over(before: datetime) -> Sequence[ColumnElement[bool]]:
    return (
        payments.c.created_at < before,
        payments.c.final_at < before,
        payments.c.status.in_(FINAL),
        payments.c.next_check_at.is_(None),
        payments.c.pruned_at.is_(None),
        payments.c.review_reasons == cast([], ARRAY(Text)),
    )


async def _over(connection: AsyncConnection, before: datetime, last: Row | None) -> Sequence[Row]:
    """Return the next payments that are over, oldest first; walks the index of creation times once."""
    order = (payments.c.created_at, payments.c.refid)
    query = select(*order).where(*_is_over(before))
    if last is not None:
        query = query.where(tuple_(*order) > tuple_(last.created_at, last.refid))
    return (await connection.execute(query.order_by(*order).limit(BATCH))).all()


async def _take_out(connection: AsyncConnection, refids: Sequence[str], before: datetime) -> int:
    """Take out what is still over under its lock, and tell how many that were."""
    empty = dict.fromkeys(("msisdn", "email", "cname", "cnumber", "details", "redirecturl"), "")
    values = empty | {"payaccount": null(), "logourl": null(), "checkout_url": null(), "pruned_at": func.now()}
    change = update(payments).where(payments.c.refid == any_(cast(refids, ARRAY(Text))), *_is_over(before))
    change = change.values(**values, metadata=cast(literal({}, JSONB), JSONB)).returning(payments.c.refid)
    taken = sorted((await connection.execute(change)).scalars())
    these = any_(cast(taken, ARRAY(Text)))
    kept = events.c.state.op("-")(cast(["payaccount", "checkout_url"], ARRAY(Text)))
    cleared = {"payaccount": null(), "detail": null(), "state": kept}
    await connection.execute(update(events).where(events.c.refid == these).values(cleared))
    # The digest stays: the same body again is still no news.
    for table in _KEPT_IN:
        await connection.execute(update(table).where(table.c.refid == these).values(body=b"", remote=null()))
    return len(taken)


async def _strays(database: Database, table: Table, before: datetime, *, dry_run: bool) -> int:
    """Delete old bodies whose payment is not in the database (a restored backup); walks the primary key once."""
    after, upto = tuple_(bindparam("refid"), bindparam("digest")), tuple_(bindparam("to_refid"), bindparam("to_digest"))
    key = tuple_(table.c.refid, table.c.digest)
    known = exists().where(payments.c.refid == table.c.refid)
    stray = (key > after) & (key <= upto) & (table.c.created_at < before) & ~known
    ahead = select(table.c.refid, table.c.digest).where(key > after).order_by(table.c.refid, table.c.digest)
    count, last = 0, ("", b"")
    while True:
        async with database.transaction() as connection:
            place = {"refid": last[0], "digest": last[1]}
            step = (await connection.execute(ahead.limit(BATCH), place)).all()
            if not step:
                return count
            last = (step[-1].refid, step[-1].digest)
            statement = select(table.c.refid) if dry_run else delete(table).returning(table.c.refid)
            place |= {"to_refid": last[0], "to_digest": last[1]}
            count += len((await connection.execute(statement.where(stray), place)).all())


async def _empty_months(database: Database, before: datetime, pruned: Pruned) -> None:
    """Give back the space of the months that are over and have no body left.

    With them go the digests: what K-Pay says once more about so old a payment is news once more. Postbacks wait while
    a month is looked through for the second time. So one that takes longer than a second to look through stays.
    """
    async with database.autocommit() as connection:
        months = over(await connection.run_sync(there), before.date())
    for name in map(name_of, months):
        with _or_left(pruned, name):
            pruned.months += await _empty(database, name)


async def _empty(database: Database, name: str) -> bool:
    is_idle = text(f"SELECT EXISTS (SELECT FROM {name}) AND NOT EXISTS (SELECT FROM {name} WHERE body <> '')")  # noqa: S608 - our own name
    async with database.unbounded() as connection:
        if not (await connection.execute(is_idle)).scalar_one():
            return False
        await connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
        await connection.execute(text("SET LOCAL statement_timeout = '1s'"))
        await connection.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"))
        still: bool = (await connection.execute(is_idle)).scalar_one()
        if still:
            await connection.execute(text(f"TRUNCATE {name}"))
        return still


@contextmanager
def _or_left(pruned: Pruned, what: str) -> Iterator[None]:
    """Note what is left as it is, and why; all else goes on."""
    try:
        yield
    except DBAPIError as exc:
        why = _LEFT.get(sqlstate(exc))
        if why is None:
            raise
        pruned.left.append(f"{what}: {why}")
