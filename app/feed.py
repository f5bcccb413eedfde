"""Reading a client's feed: its events in the order in which they were published, from wherever it was last."""

import re
from collections.abc import Sequence

from sqlalchemy import bindparam, select

from app.body import Event, Payment, event_id
from app.database import Database
from app.models import Row, events, payments

MOST = 1_000

_ID = re.compile(r"evt_([A-Za-z0-9_-]{1,40})_([1-9][0-9]{0,8})")

_POSITION = select(events.c.position).where(
    events.c.refid == bindparam("of"), events.c.seq == bindparam("number"), events.c.client == bindparam("client")
)
TOLD = (
    *(events.c[name].label(f"event_{name}") for name in ("seq", "type", "created_at", "state", "position")),
    *payments.c,
)
"""The columns that an `Event` is made of."""
_AFTER = (
    select(*TOLD)
    .join(payments, payments.c.refid == events.c.refid)
    .where(events.c.client == bindparam("client"), events.c.position > bindparam("position"))
    .order_by(events.c.position)
    .limit(bindparam("most"))
)


class UnknownEvent(ValueError):  # noqa: N818 - the name says what it is
    """An id that is no event's of this client."""

    def __init__(self) -> None:
        super().__init__("must be the id of an event of yours: a `next_cursor`, or the `id` of the last one you have")


def told(row: Row) -> Event:
    """Return a row of `TOLD` as an event."""
    return Event(
        id=event_id(row.refid, row.event_seq),
        type=row.event_type,
        refid=row.refid,
        timestamp=row.event_created_at,
        data=Payment.at(row, row.event_state),
    )


def parse_id(id_: str) -> tuple[str, int]:
    """Return refid and number of the event with this id. Raises `UnknownEvent` where it cannot be one."""
    match = _ID.fullmatch(id_)
    if match is None:
        raise UnknownEvent
    return match[1], int(match[2])


async def position_of(database: Database, client: str, id_: str) -> int:
    """Return where an event of `client` stands in its feed. Raises `UnknownEvent`."""
    refid, seq = parse_id(id_)
    async with database.autocommit() as connection:
        place = {"of": refid, "number": seq, "client": client}
        position = (await connection.execute(_POSITION, place)).scalar_one_or_none()
    if position is None:
        raise UnknownEvent
    return int(position)


async def after(database: Database, client: str, position: int, most: int) -> Sequence[Row]:
    """Return the next rows of `TOLD` after `position`, 0 being the beginning; `told` reads them."""
    async with database.autocommit() as connection:
        result = await connection.execute(_AFTER, {"client": client, "position": position, "most": most})
        return result.all()
