"""Claims of what is due: what they cost PostgreSQL when very much is, and its statistics are from before."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import asyncpg
import pytest
from annotated_types import Le
from sqlalchemy import text

from app import deliveries
from app.bell import Bell
from app.database import Database, Prepared, open_database
from app.kpay import client as kpay
from app.orders import record
from app.publish import Publisher
from app.settings import Settings
from tests.support import eventually, query
from tests.test_races import ORDER, TERMS, reconciler

FEW, CLAIMS = 4, 10

_MADE = """
WITH made AS (
    INSERT INTO payments
    SELECT (jsonb_populate_record(p, jsonb_build_object('refid', 'r' || n, 'next_check_at', NULL))).*
    FROM payments AS p, generate_series(2, 3000) AS n RETURNING refid
), told AS (
    INSERT INTO events (refid, seq, type, source, status, position)
    SELECT refid, 1, 'payment.pending', 'checkstatus', 'pending', 1 FROM made
)
INSERT INTO deliveries (refid, seq, client, delivered_at) SELECT refid, 1, 'shop', now() FROM made
"""
_AT = "now() - interval '1 hour' + substr(refid, 2)::int * interval '1 ms' WHERE refid LIKE 'r%'"
_DUE = (
    f"UPDATE payments SET next_check_at = {_AT}",  # noqa: S608 - our own words
    f"UPDATE deliveries SET delivered_at = NULL, next_at = {_AT}",  # noqa: S608 - our own words
    "UPDATE events SET position = NULL",
)
_PREPARED = Prepared(
    text("SELECT statement, custom_plans, generic_plans FROM pg_prepared_statements WHERE statement LIKE '%refid%'")
)
_READ = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = $1"


@pytest.fixture
def backlog(single: str) -> str:
    """Return a database in which thousands are due since PostgreSQL last looked; a cluster's indexes are elsewhere."""

    async def one() -> None:
        async with open_database(single, pool=1) as database:
            await record(database, ORDER, "shop", None, TERMS)

    asyncio.run(one())
    for sql in (_MADE, "VACUUM ANALYZE", *_DUE):
        query(single, sql)
    return single


async def _checks(database: Database) -> Sequence[str]:
    endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
    async with kpay.connect(endpoint) as gateway:
        worker = reconciler(database, gateway, concurrency=FEW)
        return [claim.refid for _ in range(CLAIMS) for claim in await worker._lease(FEW)]


async def _notifications(database: Database) -> Sequence[str]:
    lease, claimed = timedelta(minutes=1), []
    for _ in range(CLAIMS):
        some, _ = await deliveries.claim(database, "shop", FEW, lease=lease, ahead=1)
        claimed += [claim.event.refid for claim in some]
    return claimed


async def _events(database: Database) -> Sequence[str]:
    publisher = Publisher(database, Bell())
    assert [await publisher.publish() for _ in range(2)] == [500, 500]
    async with database.autocommit() as connection:
        return (await connection.execute(text("SELECT refid FROM events WHERE position IS NOT NULL"))).scalars().all()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    ("claimed", "count", "index", "most"),
    [
        (_checks, FEW * CLAIMS, "payments_due_idx", FEW * CLAIMS * CLAIMS),
        (_notifications, FEW * CLAIMS, "deliveries_due_idx", FEW * CLAIMS * CLAIMS),
        (_events, 1_000, "events_outbox_idx", 3_000),
    ],
)
def test_a_claim_looks_at_few_of_the_many_that_are_due(
    backlog: str,
    claimed: Callable[[Database], Awaitable[Sequence[str]]],
    *,
    count: int,
    index: str,
    most: int,
    pooled: bool,
) -> None:
    """After an outage thousands are due: a claim passes over those that were claimed before, not over all others.

    Planned once it does, and planned each time by what is given, as behind a pooler.
    """

    async def run() -> Sequence[str]:
        async with open_database(backlog, pool=1, pooled=pooled) as database:
            return await claimed(database)

    def looked_at() -> int:
        return int(query(backlog, _READ, index)[0]["idx_tup_read"]) - before

    before = 0
    before = looked_at()
    assert len(set(asyncio.run(run()))) == count
    eventually(lambda: looked_at() >= count)  # told when the connection has ended
    assert looked_at() <= most


_MANY = """
INSERT INTO deliveries (refid, seq, client, delivered_at, next_at)
SELECT 'd' || n, 1, 'shop', CASE WHEN n > $1 THEN now() END, CASE WHEN n <= $1 THEN now() + n / $2 * interval '1 us' END
FROM generate_series(1, 1000000) AS n
"""
_READ_ALONG = """
SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'deliveries') AS read,
    sum(idx_tup_read)::int AS found FROM pg_stat_user_indexes WHERE relname = 'deliveries'
"""


@pytest.mark.parametrize(("are_open", "at_once"), [(499, 500), (1_000_000, 500), (1_000_000, 1)])
def test_a_claim_reads_few_of_one_clients_very_many(single: str, are_open: int, at_once: int) -> None:
    """Whether one batch is due or all of them, or all one by one, no claim reads much more than it takes."""
    query(single, _MANY, are_open, at_once)
    query(single, "VACUUM ANALYZE deliveries")

    async def run() -> None:
        async with open_database(single, pool=1) as database:
            await _notifications(database)

    asyncio.run(run())
    eventually(lambda: query(single, _READ_ALONG)[0]["found"] > 0)  # told when the connection has ended
    row = query(single, _READ_ALONG)[0]
    assert (row["read"], row["found"] <= FEW * CLAIMS * CLAIMS) == (0, True)


def test_a_claim_takes_as_many_as_may_be_under_way(backlog: str) -> None:
    """Where a thousand notifications may be under way at once, a thousand are claimed at once."""
    (most,) = (
        int(str(each.le)) for each in Settings.model_fields["webhook_concurrency"].metadata if isinstance(each, Le)
    )

    async def run() -> int:
        async with open_database(backlog, pool=1) as database:
            some, _ = await deliveries.claim(database, "shop", most, lease=timedelta(minutes=1), ahead=1)
            return len(some)

    assert asyncio.run(run()) == most


def test_a_claim_is_planned_once(backlog: str) -> None:
    """PostgreSQL does not plan anew by what is given: to plan most of these takes longer than to do them."""

    async def run() -> Sequence[str]:
        async with open_database(backlog, pool=1) as database:
            await _checks(database)
            await _notifications(database)
            assert await Publisher(database, Bell()).publish()
            async with database.direct() as by:
                return [row.statement for row in await _PREPARED.fetch(by) if row.custom_plans or not row.generic_plans]

    assert asyncio.run(run()) == []


def test_checks_do_not_wait_for_an_overdue_payment_that_is_locked(new_database: Callable[[], str]) -> None:
    """Whoever holds the row of a payment whose time is up keeps that one from expiring, and no other from its check."""
    url = new_database()

    async def run() -> tuple[str, Sequence[str]]:
        endpoint = kpay.Endpoint("http://127.0.0.1:9/", "u", "p")
        async with open_database(url, pool=2) as database, kpay.connect(endpoint) as gateway:
            foreign = replace(TERMS, gateway="other.example.rw")
            [stuck, due] = [(await record(database, ORDER, "shop", None, of))[0].refid for of in (foreign, TERMS)]
            await asyncio.to_thread(query, url, "UPDATE payments SET next_check_at = now()")
            await asyncio.to_thread(query, url, "UPDATE payments SET expires_at = now() WHERE refid = $1", stuck)
            holder = await asyncpg.connect(url)
            async with holder.transaction():
                await holder.execute("SELECT FROM payments WHERE refid = $1 FOR UPDATE", stuck)
                claims = await reconciler(database, gateway, concurrency=FEW)._claim(FEW)
            await holder.close()
            return due, [claim.refid for claim in claims]

    due, claimed = asyncio.run(run())
    assert claimed == [due]
