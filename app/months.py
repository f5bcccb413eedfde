"""Months: raw bodies grow without end, so `bodies` is partitioned by the month in which a payment was made.

All of a payment's bodies bear one month, whenever they come: so the same words of K-Pay's stay known with the month in
the key, and a month whose bodies are all gone gives its space back at once (app.retention).

    bodies_before    payments from before there were months, and postbacks of payments that are not in the database
    bodies_2026_12   payments made in December 2026 (UTC)
    bodies_rest      payments of a month that was not made in time; it stays there. No postback waits for a month
"""

import re
from collections.abc import Iterable, Sequence
from datetime import date, timedelta

from sqlalchemy import Connection, func, select, text

AHEAD = 12
"""How many months to come there are once `make` was called."""
PATIENCE = "200ms"
"""How long a month that is made or emptied may wait for a lock, since others wait behind it."""
ONE_AT_A_TIME = 6_770_912
"""An advisory lock: of all who make months at once, one does."""
TODAY = text("SELECT CAST(now() AT TIME ZONE 'UTC' AS date)")
"""The day by which months begin, whatever zone the session is in."""
MONTH_OF = "CAST(date_trunc('month', {created_at} AT TIME ZONE 'UTC') AS date)"
"""The month of a payment, its first day, in SQL: whatever zone the session is in, one instant has one month."""

_NAME = re.compile(r"bodies_(?:before|rest|([0-9]{4})_([0-9]{2}))")
_PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = to_regclass('bodies')"
)


def following(month: date) -> date:
    """Return the month after."""
    return (month + timedelta(days=31)).replace(day=1)


def is_partition(table: str | None) -> bool:
    """Whether a table of this name is a part of another one."""
    return table is not None and _NAME.fullmatch(table) is not None


def name_of(month: date) -> str:
    """Return the name of a month's partition."""
    return f"bodies_{month:%Y_%m}"


def among(names: Iterable[str]) -> Sequence[date]:
    """Return the months of partitions with these names, in order."""
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(date(int(match[1]), int(match[2]), 1) for match in found if match is not None and match[1])


def over(there: Iterable[date], before: date) -> Sequence[date]:
    """Return those months that were over by `before`."""
    return [month for month in there if following(month) <= before]


def lacking(there: Iterable[date], now: date, ahead: int = AHEAD) -> Sequence[date]:
    """Return the months to come that are not there. The one that has begun is not made: its bodies lie in the rest."""
    month, found = now.replace(day=1), set()
    for _ in range(ahead):
        month = following(month)
        found.add(month)
    return sorted(found - set(there))


def there(connection: Connection) -> Sequence[date]:
    """Return the months that there are."""
    return among(connection.execute(_PARTITIONS).scalars())


def make(connection: Connection) -> None:
    """Make the months to come, all or none of them, in a transaction that the caller commits. Needs the table's owner.

    Whoever writes goes on meanwhile: the rest alone is locked, where nothing is written unless months had run out.
    """
    connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
    connection.execute(select(func.pg_advisory_xact_lock(ONE_AT_A_TIME)))
    now: date = connection.execute(TODAY).scalar_one()
    for month in lacking(there(connection), now):
        name = name_of(month)
        connection.execute(text(f"CREATE TABLE {name} (LIKE bodies INCLUDING DEFAULTS INCLUDING STORAGE)"))
        bounds = f"FOR VALUES FROM ('{month}') TO ('{following(month)}')"
        connection.execute(text(f"ALTER TABLE bodies ATTACH PARTITION {name} {bounds}"))
