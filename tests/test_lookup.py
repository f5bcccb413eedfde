"""Looking payments up: those asked for together share a statement, and nobody is told what is old or not theirs."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from app import reads
from app.database import ANSWER_SECONDS, Database, open_database
from app.orders import record
from app.reads import Lookup
from tests.test_races import ORDER, TERMS

CONNECTIONS = 4
Play = Callable[[Database, Lookup], Coroutine[Any, Any, None]]


def played(url: str, play: Play) -> list[str]:
    """Run `play` on a database; return every statement that its driver was given for it."""
    sent: list[str] = []

    def listen(connection: Any, *_: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter
        connection.driver_connection.add_query_logger(lambda logged: sent.append(logged.query))

    async def run() -> None:
        async with open_database(url, pool=CONNECTIONS) as database:
            event.listen(database.engine.sync_engine, "connect", listen)
            await play(database, Lookup(database))

    asyncio.run(run())
    return [statement for statement in sent if "FROM payments" in statement]


@asynccontextmanager
async def locked(database: Database) -> AsyncIterator[None]:
    """Let nobody read payments meanwhile."""
    async with database.engine.connect() as connection:
        await connection.execute(text("LOCK TABLE payments IN ACCESS EXCLUSIVE MODE"))
        yield
        await connection.rollback()


async def new(database: Database) -> str:
    """Record a payment and return its refid."""
    row, _ = await record(database, ORDER, "shop", None, TERMS)
    return str(row.refid)


def test_many_at_once_share_a_statement(new_database: Callable[[], str]) -> None:
    """One statement for fifty payments, each asked for twice; and one for what is there, not there and another's."""

    async def play(database: Database, lookup: Lookup) -> None:
        refids = [await new(database) for _ in range(50)]
        rows = await asyncio.gather(*(lookup.one(refid) for refid in refids * 2))
        assert [row and row.refid for row in rows] == refids * 2

    async def strangers(database: Database, lookup: Lookup) -> None:
        refid = await new(database)
        asked = (lookup.one("nobody"), lookup.one(refid, "another"), lookup.one(refid, "shop"))
        nothing, not_theirs, theirs = await asyncio.gather(*asked)
        assert (nothing, not_theirs) == (None, None)
        assert theirs is not None

    assert len(played(new_database(), play)) == 1
    assert len(played(new_database(), strangers)) == 1


def test_a_statement_has_a_size(new_database: Callable[[], str]) -> None:
    """More than a statement may hold are shared out among several."""

    async def play(_: Database, lookup: Lookup) -> None:
        asked = (lookup.one(f"r{number}") for number in range(3 * reads.MOST_AT_ONCE))
        assert set(await asyncio.gather(*asked)) == {None}

    assert len(played(new_database(), play)) == 3


def test_who_asks_while_a_statement_is_under_way_gets_another(new_database: Callable[[], str]) -> None:
    """Nobody is answered by a statement that was sent before they asked."""

    async def play(database: Database, lookup: Lookup) -> None:
        first, second = await new(database), await new(database)
        async with locked(database):
            before = asyncio.create_task(lookup.one(first))
            await asyncio.sleep(0.2)  # its statement is sent, and waits for the lock
            after = [asyncio.create_task(lookup.one(refid)) for refid in (first, second)]
            await asyncio.sleep(0.2)
        rows = await asyncio.gather(before, *after)
        assert [row and row.refid for row in rows] == [first, first, second]

    assert len(played(new_database(), play)) == 2


def test_fault_38_nobody_waits_longer_than_promised(new_database: Callable[[], str]) -> None:
    """While the table answers nobody, those who stand in line for a statement are told in the same two seconds."""

    async def play(database: Database, lookup: Lookup) -> None:
        refid = await new(database)
        async with locked(database):
            began, asked = time.monotonic(), []
            for _ in range(4):
                asked.append(asyncio.create_task(lookup.one(refid)))
                await asyncio.sleep(0.1)
            ended = await asyncio.gather(*asked, return_exceptions=True)
            took = time.monotonic() - began
        assert {type(each) for each in ended} == {TimeoutError}
        assert took < ANSWER_SECONDS + 1.4
        assert await lookup.one(refid) is not None

    played(new_database(), play)


def test_fault_38_after_a_failure_the_next_one_is_answered(new_database: Callable[[], str]) -> None:
    """Where no connection was to be had, nobody is answered by that failure who comes later."""

    async def play(database: Database, lookup: Lookup) -> None:
        refid = await new(database)
        await database.close()
        async with AsyncExitStack() as held:
            for _ in range(CONNECTIONS):
                connection = await held.enter_async_context(database.engine.connect())
                assert not connection.closed
            with pytest.raises(TimeoutError):
                await lookup.one(refid)
        assert await lookup.one(refid) is not None

    played(new_database(), play)


def test_one_who_leaves_takes_nobody_along(new_database: Callable[[], str]) -> None:
    """Of two who share a statement one is cut off; the other is answered."""

    async def play(database: Database, lookup: Lookup) -> None:
        refid = await new(database)
        async with locked(database):
            leaves, stays = (asyncio.create_task(lookup.one(refid)) for _ in range(2))
            await asyncio.sleep(0.1)
            leaves.cancel()
        row = await stays
        assert row is not None
        with pytest.raises(asyncio.CancelledError):
            await leaves

    played(new_database(), play)
