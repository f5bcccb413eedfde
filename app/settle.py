"""Settling: writes how attempts ended. Those that were received together share one commit.

Natural batching, as in the inbox of postbacks: what is received while a commit runs goes into the next one. A failure
is written by itself, since it changes when its payment's other events and its receiver are tried.
"""

import asyncio
from datetime import timedelta
from typing import Any

import stamina
from sqlalchemy import Integer, Interval, SmallInteger, Text, and_, bindparam, column, func, null, update
from sqlalchemy.dialects.postgresql import ARRAY

from app import receivers
from app.database import UNAVAILABLE, Database, Prepared
from app.deliveries import Claim
from app.models import IS_STILL_OPEN, deliveries
from app.receivers import Receiver

_MOST_ERROR = 200

# By number of the attempt: one that was given up for lost says nothing of the one that followed it.
_MINE = and_(
    deliveries.c.refid == bindparam("of"),
    deliveries.c.seq == bindparam("number"),
    deliveries.c.attempts == bindparam("attempt"),
    IS_STILL_OPEN,
)
_FOLLOWERS = and_(deliveries.c.refid == bindparam("of"), deliveries.c.seq > bindparam("number"), IS_STILL_OPEN)
_AT = func.now() + bindparam("delay", type_=Interval)
_SAID: dict[str, Any] = {"http_status": bindparam("said"), "error": bindparam("why")}
_PARKED = update(deliveries).where(_MINE).values(next_at=null(), parked_at=func.now(), **_SAID)
_AGAIN = update(deliveries).where(_MINE).values(next_at=_AT, **_SAID)
_MOVE_FOLLOWERS = Prepared(update(deliveries).where(_FOLLOWERS).values(next_at=_AT))
_ENDED = (
    func.unnest(
        bindparam("of_refids", type_=ARRAY(Text)),
        bindparam("of_seqs", type_=ARRAY(Integer)),
        bindparam("of_attempts", type_=ARRAY(Integer)),
        bindparam("of_said", type_=ARRAY(SmallInteger)),
    )
    .table_valued(
        column("refid", Text), column("seq", Integer), column("attempt", Integer), column("said", SmallInteger)
    )
    .render_derived("ended")
)
_RECEIVED = Prepared(
    update(deliveries)
    .where(deliveries.c.refid == _ENDED.c.refid, deliveries.c.seq == _ENDED.c.seq)
    .where(deliveries.c.attempts == _ENDED.c.attempt, deliveries.c.delivered_at.is_(None))
    # Also where it was parked meanwhile, since its client is not notified any more: it was received.
    .values(next_at=null(), parked_at=null(), delivered_at=func.now(), http_status=_ENDED.c.said, error=null())
)


class Settler:
    """Writes how attempts ended. `run` must be running for `received` to return."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[tuple[Claim, int, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def received(self, claim: Claim, said: int) -> None:
        """Write that a receiver took a notification; raises one of `UNAVAILABLE` where that could not be written."""
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((claim, said, written))
        self._arrived.set()
        await written

    async def run(self) -> None:
        """Write what was received, batch after batch, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            try:
                async for attempt in stamina.retry_context(on=UNAVAILABLE, attempts=4, wait_initial=0.2, timeout=8):
                    with attempt:
                        await self._write([(claim, said) for claim, said, _ in batch])
            except UNAVAILABLE as exc:
                for _, _, written in batch:
                    if not written.done():  # whoever waited may be gone
                        written.set_exception(exc)
            else:
                for _, _, written in batch:
                    if not written.done():
                        written.set_result(None)

    async def _write(self, batch: list[tuple[Claim, int]]) -> None:
        # In one order, so that two processes do not wait for each other.
        batch.sort(key=lambda each: (each[0].event.refid, each[0].event.event_seq))
        columns = {
            "of_refids": [claim.event.refid for claim, _ in batch],
            "of_seqs": [claim.event.event_seq for claim, _ in batch],
            "of_attempts": [claim.attempt for claim, _ in batch],
            "of_said": [said for _, said in batch],
        }
        async with self._database.direct_transaction() as by:
            await _RECEIVED.fetch(by, **columns)
            for claim, _ in batch:
                if claim.attempt > 1:  # the events behind it were held up with it
                    key = {"of": claim.event.refid, "number": claim.event.event_seq}
                    await _MOVE_FOLLOWERS.fetch(by, **key, delay=timedelta(0))
            await receivers.note_well(by, sorted({claim.event.client for claim, _ in batch}))

    async def failed(
        self,
        claim: Claim,
        receiver: Receiver,
        *,
        said: int | None,
        why: str,
        again_in: float | None,
        pause: float | None,
        gone: bool,
        longest: float,
    ) -> bool:
        """Write that an attempt failed: the next one is in `again_in` seconds, or it is parked where that is None.

        Returns True where the receiver was disabled for it: it is `gone`, or has failed for longer than `longest`.
        """
        key = {"of": claim.event.refid, "number": claim.event.event_seq}
        mine: dict[str, Any] = key | {"attempt": claim.attempt, "said": said, "why": why[:_MOST_ERROR]}
        later = {} if again_in is None else {"delay": timedelta(seconds=again_in)}
        async with self._database.transaction() as connection:
            done = await connection.execute(_AGAIN if later else _PARKED, mine | later)
            if done.rowcount:
                await _MOVE_FOLLOWERS.fetch(connection, **key, **(later or {"delay": timedelta(0)}))
            await receivers.note_failure(
                connection, receiver, pause=None if pause is None else timedelta(seconds=pause)
            )
            return await receivers.give_up(connection, receiver, gone=gone, longest=timedelta(seconds=longest))
