"""Errors of the database that SQLAlchemy does not wrap are known for what they are."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text

from app.database import UNAVAILABLE, open_database


def _leave(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's
    connection.driver_connection.terminate()


def test_fault_38_a_server_that_goes_while_a_connection_is_made_is_unavailable(
    new_database: Callable[[], str],
) -> None:
    """A connection that ends just before SQLAlchemy gives it its codecs raises what every caller is prepared for."""

    async def play(url: str) -> None:
        async with open_database(url, pool=1) as database:
            event.listen(database.engine.sync_engine, "connect", _leave, insert=True)
            with pytest.raises(UNAVAILABLE, match="connection is closed"):
                async with database.transaction():
                    pytest.fail("there was no connection")
            event.remove(database.engine.sync_engine, "connect", _leave)
            async with database.transaction() as connection:
                assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1

    asyncio.run(play(new_database()))
