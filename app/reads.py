"""Reading: one payment, a page of payments, a timeline. A client reads its own only; None reads all (an operator)."""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Select, any_, bindparam, cast, func, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from app.database import ANSWER_SECONDS, Database, Prepared
from app.models import Row, events, payments

MOST = 100
MOST_AT_ONCE = 256
"""Payments that one statement looks up."""

_STATEMENTS = 2
"""Look-ups under way at once: while one is answered the next one is on its way."""
_YEARS = range(2000, 9000)


class BadCursor(ValueError):  # noqa: N818 - the name says what it is
    """A cursor that no page ever handed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which payments are wanted; None means any."""

    status: str | None = None
    pmethod: str | None = None
    msisdn: str | None = None
    tid: str | None = None
    needs_review: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def apply(self, query: Select[Any]) -> Select[Any]:
        """Return `query` narrowed to these payments."""
        for name in ("status", "pmethod", "msisdn", "tid"):
            if (value := getattr(self, name)) is not None:
                query = query.where(payments.c[name] == value)
        if self.needs_review is not None:
            flagged = payments.c.review_reasons != cast([], ARRAY(Text))
            query = query.where(flagged if self.needs_review else ~flagged)
        if self.created_after is not None:
            query = query.where(payments.c.created_at > self.created_after)
        if self.created_before is not None:
            query = query.where(payments.c.created_at < self.created_before)
        return query


@dataclass(frozen=True, slots=True)
class Page:
    """Some payments, newest first, and the cursor of the next page, if there is one."""

    items: Sequence[Row]
    next_cursor: str | None


_MANY = Prepared(
    select(payments, func.now().label("now")).where(payments.c.refid == any_(cast(bindparam("refids"), ARRAY(Text))))
)


_Asked = dict[str, list[asyncio.Future[Row | None]]]
"""Who waits for which payment: each has a future of their own, so that one who leaves takes nobody along."""


class Lookup:
    """Reads single payments; those that are asked for together share a statement.

    There is no timer: what is asked for while others are read, or while there is no connection, goes into the next
    statement, and with nobody else about a payment is read at once. What is read is never older than the question.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Semaphore(_STATEMENTS)
        self._next: _Asked | None = None
        self._reading: set[asyncio.Task[Mapping[str, Row]]] = set()

    async def one(self, refid: str, client: str | None = None) -> Row | None:
        """Return a payment and the database's time, `now`; None where there is none or it is another client's."""
        asked = self._next
        if asked is None or len(asked) >= MOST_AT_ONCE:
            asked = self._next = self._begin()
        found: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        asked.setdefault(refid, []).append(found)
        row = await found
        return row if row is not None and client in (None, row.client) else None

    def _begin(self) -> _Asked:
        asked: _Asked = {}
        task = asyncio.create_task(self._read(asked))
        self._reading.add(task)
        task.add_done_callback(partial(self._tell, asked))
        return asked

    async def _read(self, asked: _Asked) -> Mapping[str, Row]:
        # One clock for all: whoever comes later waits less.
        async with asyncio.timeout(ANSWER_SECONDS), self._turn, self._database.direct() as connection:
            self._close(asked)  # whoever comes from here on may have been woken by a later change
            return {row.refid: row for row in await _MANY.fetch(connection, refids=list(asked))}

    def _close(self, asked: _Asked) -> None:
        """Let nobody else into a statement."""
        if self._next is asked:
            self._next = None

    def _tell(self, asked: _Asked, read: "asyncio.Task[Mapping[str, Row]]") -> None:
        self._close(asked)
        self._reading.discard(read)
        error = None if read.cancelled() else read.exception()
        for refid, waiting in asked.items():
            for found in waiting:
                if found.done():
                    continue  # whoever waited has left
                if read.cancelled():
                    found.cancel()
                elif error is not None:
                    found.set_exception(error)
                else:
                    found.set_result(read.result().get(refid))


async def page(
    database: Database, wanted: Filter, *, limit: int, cursor: str | None = None, client: str | None = None
) -> Page:
    """Return a page, newest first. Raises `BadCursor`."""
    order = (payments.c.created_at, payments.c.refid)
    query = wanted.apply(select(payments)).order_by(*(column.desc() for column in order)).limit(limit + 1)
    if client is not None:
        query = query.where(payments.c.client == client)
    if cursor is not None:
        query = query.where(tuple_(*order) < tuple_(*_decoded(cursor)))
    async with database.autocommit() as connection:
        rows = (await connection.execute(query)).all()
    items = rows[:limit]
    return Page(items, _encoded(items[-1]) if len(rows) > limit else None)


async def timeline(database: Database, refid: str) -> Sequence[Row]:
    """Return a payment's events, oldest first."""
    query = select(events).where(events.c.refid == refid).order_by(events.c.seq)
    async with database.autocommit() as connection:
        return (await connection.execute(query)).all()


def _encoded(row: Row) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()} {row.refid}".encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, refid = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split(" ")
        at = datetime.fromisoformat(created_at)
    except (ValueError, binascii.Error) as exc:
        raise BadCursor("this cursor was not made here") from exc
    if at.utcoffset() != timedelta(0) or at.year not in _YEARS or "\0" in refid:
        raise BadCursor("this cursor was not made here")
    return at, refid
