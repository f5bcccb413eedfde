"""Which of the database's errors is its absence, and which a mistake of ours."""

import asyncio

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from starlette.requests import Request

from app.api.problems import answer_to
from app.database import UNAVAILABLE

READ = {"type": "http", "method": "GET", "path": "/v1/payments/r1", "headers": [], "query_string": b"", "state": {}}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (asyncpg.UndefinedColumnError("no such column"), 500),
        (asyncpg.InsufficientPrivilegeError("not yours"), 500),
        (asyncpg.CharacterNotInRepertoireError("no such character"), 500),
        (ProgrammingError("SELECT", None, Exception("no such column")), 500),
        (asyncpg.UniqueViolationError("no such twice"), 500),
        (asyncpg.ProtocolError("no such rows"), 503),
        (asyncpg.ConnectionDoesNotExistError("gone"), 503),
        (asyncpg.ReadOnlySQLTransactionError("a standby"), 503),
        (asyncpg.DiskFullError("full"), 503),
        (asyncpg.InterfaceError("closed"), 503),
        (DBAPIError("SELECT", None, Exception("gone")), 503),
        (OperationalError("SELECT", None, Exception("gone")), 503),
        (TimeoutError(), 503),
    ],
)
def test_what_can_never_work_is_a_mistake_and_no_absent_database(error: Exception, status: int) -> None:
    """By the driver itself as by SQLAlchemy: whoever is told 503 sends the same again."""
    answer = asyncio.run(answer_to(Request(READ), error))
    assert answer.status_code == status
    assert b"no such" not in answer.body
    assert ("retry-after" in answer.headers) == (status == 503)
    assert status == 500 or isinstance(error, UNAVAILABLE), "the inbox and the pages must take it for an absence, too"
