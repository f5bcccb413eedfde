"""Connections stay at hand between two uses: never more than there may be, never one that is no good."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from sqlalchemy import Text, bindparam, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import UNAVAILABLE, CommitInDoubt, Database, Prepared, open_database
from tests.given import Postgres, through, upstream
from tests.proxy import Fault, Proxy, running_proxy
from tests.support import eventually, query

CONNECTIONS = 3
_OURS = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'at hand' AND datname = current_database()"
_READ_ONLY = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
Play = Callable[[Database], Coroutine[Any, Any, None]]


def played(url: str, play: Play, *, recycle: float = 1_800) -> None:
    """Run `play` on a database."""

    async def run() -> None:
        async with open_database(url, pool=CONNECTIONS, name="at hand", recycle=recycle) as database:
            await play(database)

    asyncio.run(run())


async def there_are(url: str) -> int:
    """Return how many connections the server sees."""
    found = await asyncio.to_thread(query, url, _OURS)
    return int(found[0]["n"])


async def pid_of(connection: AsyncConnection) -> int:
    """Return which of the server's processes answers."""
    return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def one(database: Database) -> int:
    """Use a connection for one statement; return whose it was."""
    async with database.autocommit() as connection:
        return await pid_of(connection)


_PID = Prepared(text("SELECT pg_backend_pid() AS pid"))
_NONSENSE = Prepared(text("SELECT 1 / 0 AS nonsense"))


async def one_directly(database: Database) -> int:
    """Use a connection of the driver's for one statement; return whose it was."""
    async with database.direct() as connection:
        return int((await _PID.fetch(connection))[0].pid)


async def in_transaction(database: Database) -> int:
    """Use a connection for a transaction; return whose it was."""
    async with database.transaction() as connection:
        return await pid_of(connection)


async def directly_in_transaction(database: Database) -> int:
    """Use a connection of the driver's for a transaction; return whose it was."""
    async with database.direct_transaction() as by:
        [row] = await _PID.fetch(by)
    return int(row.pid)


WAYS = (one, one_directly, in_transaction, directly_in_transaction)


def test_all_ways_together_open_no_more_than_there_may_be(new_database: Callable[[], str]) -> None:
    """Whatever one way has at hand, the others get their connections, and no more are opened than may be."""
    url = new_database()

    async def play(database: Database) -> None:
        for way in WAYS + WAYS:
            pids = await asyncio.gather(*(way(database) for _ in range(CONNECTIONS * 3)))
            assert 1 <= len(set(pids)) <= CONNECTIONS
        await asyncio.gather(*(way(database) for _ in range(CONNECTIONS * 5) for way in WAYS))
        async with AsyncExitStack() as held:
            kinds = (database.autocommit, database.transaction, database.autocommit)
            connections = [await held.enter_async_context(kind()) for kind in kinds]
            assert len({await pid_of(connection) for connection in connections}) == CONNECTIONS
            assert await there_are(url) == CONNECTIONS

    played(url, play)
    eventually(lambda: asyncio.run(there_are(url)) == 0)


def test_one_at_a_time_comes_by_the_same_connection(new_database: Callable[[], str]) -> None:
    """What is at hand is used again, also after a statement that failed."""

    async def play(database: Database) -> None:
        pids = {await one(database), await one(database)}
        with pytest.raises(DBAPIError):
            async with database.autocommit() as connection:
                await connection.execute(text("SELECT 1 / 0"))
        assert pids == {await one(database)}
        pids = {await in_transaction(database), await in_transaction(database)}
        with pytest.raises(DBAPIError):
            async with database.transaction() as connection:
                await connection.execute(text("SELECT 1 / 0"))
        assert pids == {await in_transaction(database)}
        pids = {await directly_in_transaction(database), await one_directly(database)}
        with pytest.raises(UNAVAILABLE, match="division by zero"):
            async with database.direct_transaction() as by:
                await _NONSENSE.fetch(by)
        assert pids == {await directly_in_transaction(database)}

    played(new_database(), play)


@pytest.mark.parametrize("way", WAYS)
def test_what_ended_while_it_was_at_hand_is_nobodys(
    new_database: Callable[[], str], way: Callable[[Database], Coroutine[Any, Any, int]]
) -> None:
    """A connection that the server ended meanwhile brings no error: another one is opened."""
    url = new_database()

    async def play(database: Database) -> None:
        pid = await way(database)
        await asyncio.to_thread(query, url, "SELECT pg_terminate_backend($1, 10000)", pid)
        await asyncio.sleep(0.2)
        assert await way(database) != pid

    played(url, play)


def test_a_connection_is_used_for_so_long(new_database: Callable[[], str]) -> None:
    """After its time another one takes its place."""

    async def play(database: Database) -> None:
        pid = await one(database)
        assert await one(database) == pid
        await asyncio.sleep(2.2)
        assert await one(database) != pid

    played(new_database(), play, recycle=2)


def test_what_could_not_be_opened_is_not_counted(new_database: Callable[[], str]) -> None:
    """However often no connection was to be had, the next one is asked for as ever."""

    async def play(database: Database) -> None:
        for _ in range(CONNECTIONS * 2):
            with pytest.raises(UNAVAILABLE):
                await one(database)

    played(new_database() + "-that-is-not-there", play)


WRITE = text("INSERT INTO written SELECT now()")
WRITE_DIRECTLY = Prepared(WRITE)


async def write(database: Database) -> None:
    """Write by Core."""
    async with database.autocommit() as connection:
        await connection.execute(WRITE)


async def write_directly(database: Database) -> None:
    """Write by the driver."""
    async with database.direct() as connection:
        await WRITE_DIRECTLY.fetch(connection)


async def write_directly_in_transaction(database: Database) -> None:
    """Write by the driver in a transaction."""
    async with database.direct_transaction() as by:
        await WRITE_DIRECTLY.fetch(by)


@pytest.mark.parametrize("way", [write, write_directly, write_directly_in_transaction])
def test_fault_39_of_those_to_a_server_that_takes_no_writes_none_stays_at_hand(
    new_database: Callable[[], str], way: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    """One write that is refused tells of them all: what is written next comes to a server that takes it."""
    url = new_database()
    query(url, "CREATE TABLE written (at timestamptz)")

    async def play(database: Database) -> None:
        async with AsyncExitStack() as held:
            for _ in range(CONNECTIONS):
                connection = await held.enter_async_context(database.autocommit())
                await connection.execute(_READ_ONLY)
        with pytest.raises(UNAVAILABLE, match="read-only"):
            await way(database)
        await asyncio.gather(*(way(database) for _ in range(CONNECTIONS)))

    played(url, play)


@pytest.mark.parametrize("way", WAYS)
def test_fault_39_after_one_connection_is_lost_none_of_the_others_is_used(
    new_database: Callable[[], str], postgres: Postgres, way: Callable[[Database], Coroutine[Any, Any, int]]
) -> None:
    """Where an address has moved each old connection is reset when it is used: the first error tells of them all."""
    url = new_database()

    async def play(database: Database, proxy: Proxy) -> None:
        async with AsyncExitStack() as held:
            taken = [await held.enter_async_context(database.autocommit()) for _ in range(CONNECTIONS)]
            before = {await pid_of(connection) for connection in taken}
        await asyncio.to_thread(proxy.set, Fault.LOSE_REQUEST)
        with pytest.raises(UNAVAILABLE):
            await way(database)
        await asyncio.to_thread(proxy.set, Fault.NONE)
        assert before.isdisjoint(await asyncio.gather(*(way(database) for _ in range(CONNECTIONS))))

    async def run(proxy: Proxy) -> None:
        async with open_database(through(url, proxy.port), pool=CONNECTIONS) as database:
            await play(database, proxy)

    with running_proxy(upstream(postgres)) as proxy:
        asyncio.run(run(proxy))


def test_fault_39_one_that_was_in_use_meanwhile_does_not_stay_either(new_database: Callable[[], str]) -> None:
    """Reads that were under way when a write was refused are the last ones that the old server answers."""
    url = new_database()
    query(url, "CREATE TABLE written (at timestamptz)")
    is_old = text("SHOW default_transaction_read_only")

    async def play(database: Database) -> None:
        refused = asyncio.Event()

        async def read() -> None:
            async with database.autocommit() as connection:
                await connection.execute(_READ_ONLY)
                await refused.wait()

        reads = [asyncio.create_task(read()) for _ in range(CONNECTIONS - 1)]
        await asyncio.sleep(0.2)
        async with database.transaction() as connection:
            await connection.execute(_READ_ONLY)
        with pytest.raises(DBAPIError, match="read-only"):
            async with database.transaction() as connection:
                await connection.execute(text("INSERT INTO written SELECT now()"))
        refused.set()
        await asyncio.gather(*reads)
        for _ in range(CONNECTIONS * 2):
            async with database.autocommit() as connection:
                assert (await connection.execute(is_old)).scalar_one() == "off"

    played(url, play)


def test_light_traffic_uses_all_that_are_open(new_database: Callable[[], str]) -> None:
    """What was left longest is used first: a network forgets a connection that nobody uses."""

    async def play(database: Database) -> None:
        async with AsyncExitStack() as held:
            pids = {await pid_of(await held.enter_async_context(database.autocommit())) for _ in range(CONNECTIONS)}
        assert {await one(database) for _ in range(CONNECTIONS)} == pids

    played(new_database(), play)


async def left_by_core(database: Database) -> None:
    """Begin to write, and leave the block for good."""
    block = database.transaction()
    connection = await block.__aenter__()
    await connection.execute(WRITE)
    await block.__aexit__(GeneratorExit, GeneratorExit(), None)


async def left_directly(database: Database) -> None:
    """Do the same by the driver."""
    block = database.direct_transaction()
    await WRITE_DIRECTLY.fetch(await block.__aenter__())
    await block.__aexit__(GeneratorExit, GeneratorExit(), None)


async def cancelled_directly(database: Database) -> None:
    """Begin to write, and be cancelled."""
    written = asyncio.Event()

    async def write_and_wait() -> None:
        async with database.direct_transaction() as by:
            await WRITE_DIRECTLY.fetch(by)
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def write_and_fail(database: Database) -> None:
    """Write, and fail for a reason that has nothing to do with the database."""
    async with database.direct_transaction() as by:
        await WRITE_DIRECTLY.fetch(by)
        raise ZeroDivisionError


async def failed_directly(database: Database) -> None:
    """Do that, and see it fail."""
    with pytest.raises(ZeroDivisionError):
        await write_and_fail(database)


@pytest.mark.parametrize("left", [left_by_core, left_directly, cancelled_directly, failed_directly])
def test_a_block_that_is_left_takes_its_transaction_along(
    new_database: Callable[[], str], left: Callable[[Database], Coroutine[Any, Any, None]]
) -> None:
    """What was begun and never ended is not ended by whoever comes next."""
    url = new_database()
    query(url, "CREATE TABLE written (at timestamptz)")

    async def play(database: Database) -> None:
        await left(database)
        for way in WAYS:
            await way(database)

    played(url, play)
    assert query(url, "SELECT count(*) AS n FROM written")[0]["n"] == 0
    eventually(lambda: query(url, _OURS)[0]["n"] == 0)


def test_fault_35_a_commit_that_fails_is_in_doubt(new_database: Callable[[], str]) -> None:
    """Whatever ends a COMMIT is told apart from what ends a statement, by the driver, too; and nothing stays open."""
    url = new_database()
    query(url, "CREATE TABLE written (at timestamptz UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    async def write_twice(database: Database) -> None:
        async with database.direct_transaction() as by:
            await WRITE_DIRECTLY.fetch(by)
            await WRITE_DIRECTLY.fetch(by)

    async def play(database: Database) -> None:
        with pytest.raises(CommitInDoubt, match="UniqueViolationError"):
            await write_twice(database)
        await write_directly_in_transaction(database)

    played(url, play)
    assert query(url, "SELECT count(*) AS n FROM written")[0]["n"] == 1


def test_fault_35_a_commit_that_rolls_back_is_no_commit(new_database: Callable[[], str]) -> None:
    """PostgreSQL takes COMMIT for ROLLBACK where a statement has failed, and says so: nobody is told of a success."""
    url = new_database()
    query(url, "CREATE TABLE written (at timestamptz)")

    async def go_on_after_an_error(database: Database) -> None:
        async with database.direct_transaction() as by:
            await WRITE_DIRECTLY.fetch(by)
            with suppress(*UNAVAILABLE):
                await _NONSENSE.fetch(by)

    async def play(database: Database) -> None:
        with pytest.raises(CommitInDoubt, match="ROLLBACK"):
            await go_on_after_an_error(database)
        await write_directly_in_transaction(database)

    played(url, play)
    assert query(url, "SELECT count(*) AS n FROM written")[0]["n"] == 1


@pytest.mark.parametrize("pooled", [False, True])
def test_a_statement_is_given_its_own_parameters_and_no_others(
    new_database: Callable[[], str], *, pooled: bool
) -> None:
    """One too few and one too many are mistakes, by the driver and by Core, which would write such a column."""
    url = new_database()
    statement = Prepared(select(bindparam("value", type_=Text).label("value")))

    async def run() -> None:
        async with open_database(url, pool=1, pooled=pooled) as database, database.direct() as by:
            for wrong in ({}, {"other": "a"}, {"value": "a", "other": "b"}):
                with pytest.raises(TypeError, match="not the statement's parameters"):
                    await statement.fetch(by, **wrong)
            [row] = await statement.fetch(by, value="a")
            assert row.value == "a"

    asyncio.run(run())
