"""How PostgreSQL plans: once what is prepared, for a while, and all else by what is given."""

import asyncio
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.database import Database, Prepared, open_database
from app.orders import record
from app.reads import Lookup
from tests.given import name_of
from tests.support import eventually, query
from tests.test_races import ORDER, TERMS

_SHOWN = "SELECT current_setting('plan_cache_mode') AS plans, pg_backend_pid() AS pid"
_PLANS = Prepared(text(_SHOWN))
_MANY = """
INSERT INTO payments
SELECT (jsonb_populate_record(p, jsonb_build_object('refid', 'r' || n))).*
FROM payments AS p, generate_series(1, 9999) AS n
"""
_SEEN = "SELECT seq_tup_read AS read, idx_scan AS looked_up FROM pg_stat_user_tables WHERE relname = 'payments'"


@pytest.mark.parametrize(
    ("default", "for_prepared"), [("auto", "force_generic_plan"), ("force_custom_plan", "force_custom_plan")]
)
def test_what_is_prepared_is_planned_once_and_all_else_by_what_is_given(
    single: str, default: str, for_prepared: str
) -> None:
    """One connection for all ways: each finds it as it needs it, also after a transaction that was rolled back.

    Unless whoever runs the database has decided otherwise.
    """
    query(single, f'ALTER DATABASE "{name_of(single)}" SET plan_cache_mode = {default}')
    found = []

    async def prepared(database: Database) -> None:
        async with database.direct() as by:
            found.append(tuple((await _PLANS.fetch(by))[0]))

    async def run() -> None:
        async with open_database(single, pool=1) as database:
            await prepared(database)
            async with database.autocommit() as connection:
                found.append(tuple((await connection.execute(text(_SHOWN))).one()))
            await prepared(database)
            for error in (False, True):
                with suppress(DBAPIError):
                    async with database.transaction() as connection:
                        found.append(tuple((await connection.execute(text(_SHOWN))).one()))
                        await connection.execute(text("SELECT 1 / 0" if error else "SELECT 1"))
                await prepared(database)
            async with database.unbounded() as connection:
                found.append(tuple((await connection.execute(text(_SHOWN))).one()))
            await prepared(database)

    asyncio.run(run())
    assert [plans for plans, _ in found] == [for_prepared, default] * 4 + [for_prepared]
    assert len({pid for _, pid in found}) == 1


def test_what_was_planned_for_a_small_table_does_not_read_all_of_a_large_one(single: str) -> None:
    """A plan is kept for seconds: a table that was nearly empty, and that nobody has analysed since, may have grown."""

    async def run() -> None:
        async with open_database(single, pool=1) as database:
            row, _ = await record(database, ORDER, "shop", None, TERMS)
            lookup = Lookup(database)
            assert await lookup.one(row.refid)
            await asyncio.to_thread(query, single, _MANY)
            await asyncio.sleep(10.5)
            for _ in range(10):
                assert await lookup.one(row.refid)

    query(single, "ALTER TABLE payments SET (autovacuum_enabled = off)")  # analysed, it would be planned anew
    asyncio.run(run())
    eventually(lambda: query(single, _SEEN)[0]["looked_up"] >= 10)  # told when the connection has ended
    assert query(single, _SEEN)[0]["read"] < 9_999
