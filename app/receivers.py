"""Receivers: where clients are notified, with which secrets, and whether their receiver is well."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import (
    Boolean,
    Interval,
    Text,
    and_,
    any_,
    bindparam,
    case,
    func,
    insert,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import Database, Direct, Prepared
from app.models import OUT_OF_SERVICE, client_events, clients


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where a client's notifications go. `paused` is for how many seconds more it asked to be left alone."""

    client: str
    url: str
    secrets: Sequence[str]
    paused: float


async def in_service(database: Database) -> dict[str, Receiver]:
    """Return the receivers that are to be notified, by client."""
    paused = func.greatest(0, func.extract("epoch", clients.c.webhook_paused_until - func.now()))
    query = select(clients, func.coalesce(paused, 0).label("paused")).where(~OUT_OF_SERVICE)
    async with database.autocommit() as connection:
        rows = (await connection.execute(query)).all()
    return {
        row.name: Receiver(
            row.name,
            row.webhook_url,
            [secret for secret in (row.webhook_secret, row.previous_webhook_secret) if secret],
            float(row.paused),
        )
        for row in rows
    }


async def out_of_service(database: Database) -> Sequence[str]:
    """Return the clients that are not notified any more."""
    query = select(clients.c.name).where(OUT_OF_SERVICE)
    async with database.autocommit() as connection:
        return (await connection.execute(query)).scalars().all()


# The URL too: what an old one answers late says nothing of the one that took its place.
_OF = and_(clients.c.name == bindparam("client"), clients.c.webhook_url == bindparam("url"))
_WELL = Prepared(
    update(clients)
    .where(clients.c.name == any_(bindparam("clients", type_=ARRAY(Text))))
    .where(clients.c.webhook_failing_since.is_not(None))
    .values(webhook_failing_since=null())
)
# Longer than the longest time between two attempts: after it nothing was tried, and nothing is known.
_SILENCE = text("interval '2 days'")
_ANEW = or_(clients.c.webhook_failing_since.is_(None), clients.c.webhook_failed_at < func.now() - _SILENCE)
_FAILING = (
    update(clients)
    .where(_OF)
    .values(
        webhook_failing_since=case((_ANEW, func.now()), else_=clients.c.webhook_failing_since),
        webhook_failed_at=func.now(),
    )
)
_PAUSE = update(clients).where(_OF).values(webhook_paused_until=func.now() + bindparam("pause", type_=Interval))
_GIVE_UP = (
    update(clients)
    .where(_OF, clients.c.webhook_disabled_at.is_(None))
    .where(
        or_(
            bindparam("gone", type_=Boolean),
            clients.c.webhook_failing_since < func.now() - bindparam("longest", type_=Interval),
        )
    )
    .values(webhook_disabled_at=func.now())
)


async def note_well(by: Direct, clients: Sequence[str]) -> None:
    """Note that the receivers of `clients` take notifications (again)."""
    await _WELL.fetch(by, clients=clients)


async def note_failure(connection: AsyncConnection, receiver: Receiver, *, pause: timedelta | None) -> None:
    """Note that the receiver failed, and leave it alone for `pause`."""
    of = {"client": receiver.client, "url": receiver.url}
    await connection.execute(_FAILING, of)
    if pause is not None:
        await connection.execute(_PAUSE, of | {"pause": pause})


async def give_up(connection: AsyncConnection, receiver: Receiver, *, gone: bool, longest: timedelta) -> bool:
    """Disable a receiver that is `gone`, or has done nothing but fail for `longest`; True where that is new."""
    of = {"client": receiver.client, "url": receiver.url}
    done = await connection.execute(_GIVE_UP, of | {"gone": gone, "longest": longest})
    if done.rowcount:
        detail = "the receiver answered 410" if gone else f"the receiver has failed for {longest}"
        await connection.execute(
            insert(client_events), {"client": receiver.client, "type": "webhook_disabled", "detail": detail}
        )
    return bool(done.rowcount)
