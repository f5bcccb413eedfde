"""Reading: one payment, a page of payments, a timeline. A client reads its own only; None reads all (an operator)."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, bindparam, cast, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from app.database import Database
from app.models import Row, events, payments

MOST = 100

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


_ONE = select(payments).where(payments.c.refid == bindparam("of"))


async def one(database: Database, refid: str, client: str | None = None) -> Row | None:
    """Return a payment, or None where there is none or it is another client's: the two look the same."""
    async with database.autocommit() as connection:
        row = (await connection.execute(_ONE, {"of": refid})).one_or_none()
    return row if row is not None and client in (None, row.client) else None


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
