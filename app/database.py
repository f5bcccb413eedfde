"""Engines: how this service talks to PostgreSQL, with every wait bounded.

A statement, a connect and the wait for a connection each have a limit, so that a database that has gone silent makes
an error within seconds and not a hang. Parameters never appear in an error's text.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

UNAVAILABLE = (DBAPIError, PoolTimeoutError, OSError, TimeoutError)
"""What an unreachable, full, read-only or overtaxed database raises, wherever in the stack it shows."""

STATEMENT_SECONDS = 2.0
CONNECT_SECONDS = 2.0
POOL_SECONDS = 2.0

_RENAMED = {"sslmode": "ssl"}
_OURS = {"connect_timeout", "application_name"}  # libpq's; this service sets both itself


def async_url(url: str) -> str:
    """Return a user's PostgreSQL URL as SQLAlchemy's for asyncpg."""
    parts = urlsplit(re.sub(r"^(postgresql|postgres)(\+asyncpg)?://", "postgresql+asyncpg://", url))
    query = [(_RENAMED.get(name, name), value) for name, value in parse_qsl(parts.query) if name not in _OURS]
    rest = urlunsplit(("", parts.netloc, parts.path, urlencode(query), "")).removeprefix("//")
    return f"{parts.scheme}://{rest}"


def make_engine(url: str, *, pool: int, statement_seconds: float | None = STATEMENT_SECONDS) -> AsyncEngine:
    """Return an engine that holds at most `pool` connections; the caller disposes of it."""
    return create_async_engine(
        async_url(url),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,  # never waited for: `Database` lets in no more than the pool holds
        pool_pre_ping=False,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": statement_seconds,
            "server_settings": {"application_name": "kpayd", "timezone": "UTC", "jit": "off"},
        },
    )


class Database:
    """One pool of connections with the two ways of using it.

    Whoever waits for a connection waits in line: SQLAlchemy's own pool lets newcomers overtake, and under load the
    same few callers wait until their time is up.
    """

    def __init__(self, engine: AsyncEngine, connections: int) -> None:
        self.engine = engine
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._line = asyncio.Semaphore(connections)

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection for single statements, each its own transaction (a quarter cheaper for reads)."""
        await self._wait_in_line()
        try:
            async with self._autocommit.connect() as connection:
                yield connection
        finally:
            self._line.release()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction; leaving the block commits, and only then may anybody be told."""
        await self._wait_in_line()
        try:
            async with self.engine.begin() as connection:
                yield connection
        finally:
            self._line.release()

    async def _wait_in_line(self) -> None:
        async with asyncio.timeout(POOL_SECONDS):
            await self._line.acquire()


@asynccontextmanager
async def open_database(url: str, *, pool: int) -> AsyncIterator[Database]:
    """Yield a `Database` and close its connections afterwards."""
    engine = make_engine(url, pool=pool)
    try:
        yield Database(engine, pool)
    finally:
        await engine.dispose()


def sqlstate(exc: BaseException) -> str:
    """Return the SQLSTATE behind `exc`, or an empty text."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    return str(getattr(original, "sqlstate", None) or "")
