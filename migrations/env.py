"""How migrations reach the database: `KPAYD_DATABASE_URL`, with a short `lock_timeout`.

A migration that waits for a lock makes every writer behind it wait too, so it gives up early and tries again.
"""

import asyncio
import time

import stamina
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from app.cluster import place
from app.database import make_engine, sqlstate
from app.models import metadata
from app.months import is_partition, make
from app.settings import DatabaseSettings, load

LOCK_TIMEOUT = "200ms"
ONE_AT_A_TIME = 6_770_911
"""An advisory lock: of replicas that start together, one migrates and the others find it done."""


def run(connection: Connection) -> None:
    """Run the migrations that `alembic` was asked for, each in its own transaction."""
    # Asked again and again: a statement that waits is a transaction, and an index built CONCURRENTLY waits for it.
    while not connection.execute(text(f"SELECT pg_try_advisory_lock({ONE_AT_A_TIME})")).scalar_one():
        connection.commit()
        time.sleep(0.1)
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transaction_per_migration=True,
        compare_server_default=True,
        include_name=lambda name, kind, _: kind != "table" or not is_partition(name),
    )
    with context.begin_transaction():
        context.run_migrations()
    if context.config.attributes.get("complete"):
        make(connection)
        connection.commit()
        place(connection)


def is_taken(exc: Exception) -> bool:
    """Whether a lock was not had in time, or two waited for each other."""
    return isinstance(exc, DBAPIError) and sqlstate(exc) in ("55P03", "40P01")


async def main(url: str) -> None:
    """Run, however long it takes (an index may take minutes); a lock that is taken is tried again for five minutes."""
    async for attempt in stamina.retry_context(on=is_taken, attempts=100, wait_initial=0.5, wait_max=3, timeout=300):
        with attempt:
            await once(url)


async def once(url: str) -> None:
    """Try once, on a connection of its own."""
    engine = make_engine(url, pool=1)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        # Its session holds the lock by which one migrates at a time: left open, it would keep the next attempt out.
        await engine.dispose()


def write() -> None:
    """Write the migrations as SQL instead of running them (`alembic upgrade --sql`): for a linter, or a reader."""
    context.configure(dialect_name="postgresql", target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        context.run_migrations()


if context.is_offline_mode():
    write()
else:
    asyncio.run(main(context.config.attributes.get("database_url") or load(DatabaseSettings).database_url))
