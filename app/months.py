"""Months: `evidence` and `events` grow without end, so they are partitioned by the month in which a payment was made.

All rows about one payment bear one month, whenever they are written: so what is unique about a payment stays unique
with the month in the key, and a month whose bodies are all gone gives its space back at once (app.retention).

    TABLE_before    payments from before there were months, and postbacks of payments that are not in the database
    TABLE_2026_12   payments made in December 2026 (UTC)
    TABLE_rest      whatever has no month: nothing, while months are made in time; so no postback is ever refused
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, text

from app.models import VACUUM

BEFORE = date.min
"""The month of what has none: `-infinity` in SQL, which is the column's default, too."""

TABLES = ("evidence", "events")
AHEAD = 12
"""For how many months to come there are partitions once those that are `lacking` have been made."""
PATIENCE = "200ms"
"""For how long a partition that is made or emptied may make others wait who wait behind it."""

OPTIONS = {"events": VACUUM}
"""How a table's partitions are stored, where not as PostgreSQL does by itself."""
_NAME = re.compile(rf"({'|'.join(TABLES)})_(?:before|rest|([0-9]{{4}})_([0-9]{{2}}))")
_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = to_regclass(:parent)"
)
_END = text(
    "SELECT max(CAST((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([0-9-]+)''\\)'))[1] AS date)) "
    "FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(:parent)"
)


def month_of(created_at: datetime) -> date:
    """Return the month of a payment that was made at this time: its first day."""
    return created_at.astimezone(UTC).date().replace(day=1)


def following(month: date) -> date:
    """Return the month after."""
    return (month + timedelta(days=31)).replace(day=1)


def is_partition(table: str | None) -> bool:
    """Whether a table of this name is a part of another one."""
    return table is not None and _NAME.fullmatch(table) is not None


def name_of(table: str, month: date) -> str:
    """Return the name of a month's partition."""
    return f"{table}_{month:%Y_%m}"


def among(names: Iterable[str]) -> Sequence[date]:
    """Return the months of partitions with these names, in order."""
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(date(int(match[2]), int(match[3]), 1) for match in found if match is not None and match[2])


def over(names: Iterable[str], before: date) -> Sequence[date]:
    """Return the months among partitions with these names that were over by `before`."""
    return [month for month in among(names) if following(month) <= before]


def wanted(first: date, now: date) -> Sequence[date]:
    """Return the months that are to be made, from `first`, without a gap, up to `AHEAD` months after `now`."""
    found = []
    while (first.year - now.year) * 12 + first.month - now.month <= AHEAD:
        found.append(first)
        first = following(first)
    return found


def partition(table: str, month: date) -> Sequence[str]:
    """Return the statements of one transaction that gives a table a month, with what waits for it in the rest.

    The rest is locked meanwhile, for as long as there is little in it: it is empty unless months had run out.
    """
    name = name_of(table, month)
    options = ", ".join(f"{key} = {value}" for key, value in OPTIONS.get(table, {}).items())
    stored = f" WITH ({options})" if options else ""
    return (
        f"SET LOCAL lock_timeout = '{PATIENCE}'",
        f"LOCK TABLE {table}_rest IN ACCESS EXCLUSIVE MODE",
        f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING STORAGE){stored}",
        f"WITH these AS (DELETE FROM {table}_rest WHERE month = '{month}' RETURNING *) INSERT INTO {name} TABLE these",  # noqa: S608 - our own names
        f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{month}') TO ('{following(month)}')",
    )


def partitions(connection: Connection, table: str) -> Sequence[str]:
    """Return the names of a table's partitions."""
    return connection.execute(_PARTITIONS, {"parent": table}).scalars().all()


def missing_from(connection: Connection, table: str) -> date | None:
    """Return the first month that a table has no partition for; None where the schema is one without months."""
    month: date | None = connection.execute(_END, {"parent": table}).scalar_one()
    return month


def lacking(connection: Connection) -> Sequence[Sequence[str]]:
    """Return the statements that make the months to come, a transaction each. They need the tables' owner."""
    now: date = connection.execute(text("SELECT current_date")).scalar_one()
    first = {table: missing_from(connection, table) for table in TABLES}
    return [partition(table, month) for table, begin in first.items() if begin for month in wanted(begin, now)]
