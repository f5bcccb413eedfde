"""Engines: how this service talks to PostgreSQL, with every wait bounded.

Whatever is asked of the database has one limit of time, waiting for a connection and the commit included, so that a
database that has gone silent makes an error and not a hang. Parameters never appear in an error's text.
"""

import asyncio
import re
import time
from collections import namedtuple
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from sqlalchemy import Executable, event
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from app.held import Driver, Held

# asyncpg's own are what comes by the driver, and a fresh connection that is ended while it is given its codecs.
UNAVAILABLE = (
    *(DBAPIError, PoolTimeoutError, OSError, TimeoutError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError),
)
"""What an unreachable, full, read-only or overtaxed database raises, wherever in the stack it shows."""

ANSWER_SECONDS = 2.0
"""How long anything may take that is asked of the database, all told."""

TELLING = "kpayd telling"
"""What the connections are called by which clients and other processes are told: they stand in nobody's way."""

_CONNECT_SECONDS = 1.5  # shorter, so that a second host of the URL has its turn
_RECYCLE = 1_800.0
_RENAMED = {"sslmode": "ssl"}
_OURS = {"connect_timeout", "application_name"}  # libpq's; this service sets both itself
_READ_ONLY = "25006"


class CommitInDoubt(ConnectionError):  # noqa: N818 - the name says what it is
    """COMMIT failed: it may have landed all the same. Read again before anybody is told anything."""


def async_url(url: str) -> str:
    """Return a user's PostgreSQL URL as SQLAlchemy's for asyncpg; several hosts may stand in it, as libpq has them."""
    parts = urlsplit(re.sub(r"^(postgresql|postgres)(\+asyncpg)?://", "postgresql+asyncpg://", url))
    query = [(_RENAMED.get(name, name), value) for name, value in parse_qsl(parts.query) if name not in _OURS]
    who, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts:
        query += [("host", host if ":" in host else f"{host}:5432") for host in hosts.split(",")]
        hosts = ""
    rest = urlunsplit(("", who + at + hosts, parts.path, urlencode(query), "")).removeprefix("//")
    return f"{parts.scheme}://{rest}"


def make_engine(
    url: str, *, pool: int, pooled: bool = False, name: str = "kpayd", recycle: float = _RECYCLE
) -> AsyncEngine:
    """Return an engine that holds at most `pool` connections; the caller disposes of it.

    `pooled` is for a pooler that gives each transaction another connection (pgbouncer): nothing is prepared ahead, and
    no option is set that it would refuse.
    """
    arguments: dict[str, Any] = {"timeout": _CONNECT_SECONDS, "server_settings": {"application_name": name}}
    if pooled:
        arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        arguments["prepared_statement_name_func"] = str  # no name: gone with the next one, whoever prepares it
    else:
        # A server that notices when we have gone lets go of locks that nobody waits for any more. No
        # statement_timeout: it would end COMMIT's wait for a synchronous standby, and call that a success.
        # Keepalives, so that no network forgets a connection that is kept at hand.
        arguments["server_settings"] |= {
            "tcp_keepalives_idle": "60",
            "timezone": "UTC",
            "jit": "off",
            "client_connection_check_interval": "1s",
        }
    engine = create_async_engine(
        async_url(url),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=ANSWER_SECONDS,  # never waited for: `Database` lets in no more than the pool holds
        pool_pre_ping=False,
        pool_recycle=recycle,
        hide_parameters=True,
        connect_args=arguments,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "invalidate", _hang_up)
    event.listen(engine.sync_engine, "handle_error", _leave_read_only)
    return engine


def _refuse_closed(connection: Any, *_: object) -> None:  # noqa: ANN401 - the driver's
    """Let the pool open another connection where this one has ended while nobody used it."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _hang_up(connection: Any, *_: object) -> None:  # noqa: ANN401 - the driver's
    """Say no goodbye: SQLAlchemy would wait two seconds for a server that does not answer."""
    connection.driver_connection.terminate()


def _leave_read_only(context: ExceptionContext) -> None:
    """Give up connections to a server that takes no writes: after a failover another one does."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


Direct = Driver | AsyncConnection
"""By which a `Prepared` statement goes: the driver itself, or Core behind a pooler."""


class Prepared:
    """One of Core's statements, made ready once for `Database.direct`; its parameters are named, as Core has them.

    They go to the driver as they are given: JSON as text, and no `IN` of a list, which Core writes at each execution.
    """

    def __init__(self, statement: Executable) -> None:
        self._statement = statement
        compiled: Any = statement.compile(dialect=dialect())  # type: ignore[attr-defined, no-untyped-call] # SQLAlchemy's
        self._sql = str(compiled)
        self._names: Sequence[str] = compiled.positiontup
        self._own = {name: value for name, value in compiled.params.items() if value is not None}
        self._given = frozenset(self._names) - self._own.keys()
        self._row: Any = None

    async def fetch(self, by: Direct, /, **values: object) -> Sequence[Any]:
        """Execute it and return all rows, which are named tuples either way."""
        if self._given != values.keys():  # the driver would not miss one too many, which Core would write
            raise TypeError(f"not the statement's parameters: {', '.join(sorted(self._given ^ values.keys()))}")
        found: Sequence[Any]
        if isinstance(by, AsyncConnection):
            result = await by.execute(self._statement, values)
            found = result.mappings().all() if result.returns_rows else ()
        else:
            given = self._own | values
            found = await by.fetch(self._sql, *(given[name] for name in self._names))
        if found and self._row is None:
            self._row = namedtuple("Row", found[0].keys())  # type: ignore[misc] # noqa: PYI024 - known only now
        return [self._row._make(row.values()) for row in found]

    async def first(self, by: Direct, /, **values: object) -> Any | None:  # noqa: ANN401 - a row of any table
        """Execute it and return the first row, if there is one."""
        return next(iter(await self.fetch(by, **values)), None)


class Database:
    """One pool of connections with several ways of using it. All raise one of `UNAVAILABLE` within `ANSWER_SECONDS`.

    Whoever waits for a connection waits in line: SQLAlchemy's own pool lets newcomers overtake, and under load the
    same few callers wait until their time is up. And what was used once stays at hand, apart for each way: to take a
    connection out of that pool and to put it back cost as much as the statement.
    """

    def __init__(self, engine: AsyncEngine, connections: int, *, pooled: bool, recycle: float) -> None:
        self.engine = engine
        # Behind a pooler a statement alone may be prepared on one connection and executed on another.
        self._autocommit = engine if pooled else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._pooled = pooled
        self._at_hand: dict[AsyncEngine, list[Held]] = {engine: [], self._autocommit: []}
        self._open = 0
        self._era = 0
        self._lost = 0
        self._most = connections
        self._recycle = recycle
        self._line = asyncio.Semaphore(connections)
        self._waited = 0.0

    @property
    def waiting_seconds(self) -> float:
        """How long the last caller stood in line for a connection; 0 where nobody does."""
        return self._waited if self._line.locked() else 0.0

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection for single statements, each its own transaction (a quarter cheaper for reads)."""
        async with self._connected(self._autocommit) as held:
            await held.plan_by_value("SESSION")
            yield held.connection
            if self._pooled:
                await held.connection.commit()

    def direct(self) -> AbstractAsyncContextManager[Direct]:
        """Give what `Prepared` statements go by, each its own transaction.

        For what everybody waits for: Core took three times the driver's CPU (docs/decisions/0021-the-driver-itself.md).
        And PostgreSQL plans it once, whatever the values (docs/decisions/0028-planned-once.md).
        """
        return self.autocommit() if self._pooled else self._driven()

    def direct_transaction(self) -> AbstractAsyncContextManager[Direct]:
        """Give what `Prepared` statements go by in one transaction, which ends as in `transaction`."""
        return self.transaction() if self._pooled else self._driven_transaction()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction; leaving the block commits, and only then may anybody be told.

        Raises `CommitInDoubt` where it was the commit that failed.
        """
        async with self._connected(self.engine) as held:
            await held.plan_by_value("LOCAL")
            yield held.connection
            try:
                await held.connection.commit()
            except UNAVAILABLE as exc:
                raise CommitInDoubt(type(exc).__name__) from exc

    @asynccontextmanager
    async def unbounded(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction that may take its time: for commands, which do one thing at a time.

        What is at hand is let go of first, so that there is a connection to be had.
        """
        await self._let_go_of_all()
        async with self.engine.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL plan_cache_mode TO DEFAULT")  # it may have been the driver's
            yield connection

    async def close(self) -> None:
        """Close what is at hand."""
        await self._let_go_of_all()
        await self.engine.dispose()

    @asynccontextmanager
    async def _driven(self) -> AsyncIterator[Driver]:
        async with self._connected(self._autocommit, plans_once=True) as held:
            try:
                await held.plan_once()
                yield held.driver
            except Exception as exc:
                # By Core SQLAlchemy sees to this.
                if held.driver.is_closed() or sqlstate(exc) == _READ_ONLY:
                    self._lost = max(self._lost, held.era + 1)  # after a failover the others are no better
                    await held.connection.invalidate()
                elif isinstance(exc, asyncpg.InternalClientError):
                    await held.connection.invalidate()
                raise

    @asynccontextmanager
    async def _driven_transaction(self) -> AsyncIterator[Driver]:
        async with self._driven() as driver:
            try:
                await driver.execute("BEGIN")
                try:
                    yield driver
                except Exception:
                    with suppress(*UNAVAILABLE):
                        await driver.execute("ROLLBACK")
                    raise
                try:
                    outcome = await driver.execute("COMMIT")
                except UNAVAILABLE as exc:
                    raise CommitInDoubt(type(exc).__name__) from exc
                if outcome != "COMMIT":
                    raise CommitInDoubt(outcome)  # a statement had failed, and whoever sent it went on
            finally:
                if not driver.is_closed() and driver.is_in_transaction():
                    driver.terminate()  # SQLAlchemy, which knows of none, would let somebody else go on in it

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine, *, plans_once: bool = False) -> AsyncIterator[Held]:
        async with asyncio.timeout(ANSWER_SECONDS):
            began = time.monotonic()
            async with self._line:
                self._waited = time.monotonic() - began
                held = await self._taken(engine, plans_once=plans_once)
                try:
                    try:
                        yield held
                    except Exception:
                        # Here it can still be cut short: SQLAlchemy's own would wait for an answer for ever.
                        await held.connection.rollback()
                        raise
                except asyncio.CancelledError:
                    if not held.connection.invalidated:
                        await held.connection.invalidate()
                    raise
                finally:
                    await self._put_back(engine, held)

    async def _taken(self, engine: AsyncEngine, *, plans_once: bool) -> Held:
        """Return a connection: the one at hand for longest, of those that plan so if there are any.

        Else another one, for which one of the other way may go.
        """
        at_hand = self._at_hand[engine]
        while at_hand:
            held = next((each for each in at_hand if each.plans_once == plans_once), at_hand[0])
            at_hand.remove(held)
            if held.is_good and held.era == self._era:
                return held
            await self._let_go(held)
        era = self._era
        self._open += 1
        try:
            others = next((each for each in self._at_hand.values() if each), None)
            if self._open > self._most and others:
                await self._let_go(others.pop(0))
            connection = await engine.connect()
            driver: Any = (await connection.get_raw_connection()).driver_connection
        except BaseException:
            self._open -= 1
            raise
        return Held(connection, driver, time.monotonic() + self._recycle, era, connection.info)

    async def _put_back(self, engine: AsyncEngine, held: Held) -> None:
        if held.is_good and held.era == self._era:
            self._at_hand[engine].append(held)
            return
        is_first = held.era == self._era
        # After a failover the others are no better, those in use included: SQLAlchemy's pool opens new ones.
        self._era += is_first
        await self._let_go(held)
        if is_first:
            await self._let_go_of_all()

    async def _let_go_of_all(self) -> None:
        for each in self._at_hand.values():
            while each:
                await self._let_go(each.pop())

    async def _let_go(self, held: Held) -> None:
        if held.era < self._lost:
            held.driver.terminate()  # or SQLAlchemy's pool would hand it out again
        try:
            await held.connection.close()
        finally:
            self._open -= 1


@asynccontextmanager
async def open_database(
    url: str, *, pool: int, pooled: bool = False, name: str = "kpayd", recycle: float = _RECYCLE
) -> AsyncIterator[Database]:
    """Yield a `Database` and close its connections afterwards; `name` is what PostgreSQL's own lists call them.

    A connection is used for `recycle` seconds, and then another one in its place.
    """
    engine = make_engine(url, pool=pool, pooled=pooled, name=name, recycle=recycle)
    database = Database(engine, pool, pooled=pooled, recycle=recycle)
    try:
        yield database
    finally:
        with suppress(TimeoutError):  # a server that does not answer is not waited for
            async with asyncio.timeout(ANSWER_SECONDS):
                await database.close()


def sqlstate(exc: BaseException) -> str:
    """Return the SQLSTATE behind `exc`, or an empty text."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    return str(getattr(original, "sqlstate", None) or "")
