"""The inbox of postbacks: many that arrive together share one commit.

Natural batching: one task writes; what arrives while its commit runs goes into the next statement, and each request
waits for its own commit. There is no timer, so at low load a batch is one postback and nothing waits. A statement
stores the raw bodies, writes the timeline and wakes a check for every payment that the postback disagrees with.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import text

from app import metrics
from app.bell import DUE, Bell
from app.database import ANSWER_SECONDS, UNAVAILABLE, Database, Prepared, sqlstate
from app.domain import Evidence, agrees_with
from app.models import Row, payments
from app.months import MONTH_OF
from app.raw import Raw
from app.snapshot import COLUMNS

log = structlog.get_logger()

MOST_IN_A_BATCH = 256
MOST_WAITING = 2_048
MOST_OF_ONE = 256
"""How many different postbacks of one payment may wait: a storm of one must leave room for all others."""

_LOOK_EVERY = 0.05
_LONGEST = {"tid": 64, "momtransactionid": 64, "payaccount": 64, "statusid": 16, "statusdesc": 500}
_OF_ONE_ROW = ("22", "23", "40", "54")
"""SQLSTATE classes of an error that one row may have brought on its neighbours: data, constraint, deadlock, limit."""


class Full(Exception):  # noqa: N818 - the name says what it is
    """More postbacks wait than can be stored in time: K-Pay must come again."""


@dataclass(frozen=True, slots=True)
class Postback:
    """One postback that came by an authentic path: whose it is, what it says and its raw body."""

    refid: str
    evidence: Evidence
    raw: Raw


_Stored = asyncio.Future[Row | None]
"""What one caller waits for: each has its own, so that one who leaves takes nobody along."""
_Item = tuple[Postback, list[_Stored]]


class Inbox:
    """Stores postbacks durably. `run` must be running for `put` to return."""

    def __init__(self, database: Database, bell: Bell) -> None:
        self._database = database
        self._bell = bell
        self._waiting: dict[tuple[str, bytes], _Item] = {}
        self._waiting_of: Counter[str] = Counter()
        self._arrived = asyncio.Event()
        self._deadlines: deque[tuple[float, _Stored]] = deque()

    async def put(self, postback: Postback) -> Row | None:
        """Return once the postback is committed, with its payment as `snapshot` takes it, or None where there is none.

        Raises `Full`, or the database's error, or `TimeoutError`: then nothing may be acknowledged.
        """
        key = (postback.refid, postback.raw.digest)
        if key not in self._waiting:
            if self._is_full(postback.refid):
                raise Full
            self._waiting[key] = (postback, [])
            self._waiting_of[postback.refid] += 1
            self._arrived.set()
        loop = asyncio.get_running_loop()
        stored: _Stored = loop.create_future()
        self._waiting[key][1].append(stored)
        self._deadlines.append((loop.time() + ANSWER_SECONDS, stored))
        return await stored

    def _is_full(self, refid: str) -> bool:
        return len(self._waiting) >= MOST_WAITING or self._waiting_of[refid] >= MOST_OF_ONE

    async def run(self) -> None:
        """Store what waits, batch after batch, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._give_up_late_ones())
            while True:
                await self._arrived.wait()
                await self._settle(self._take())

    async def _give_up_late_ones(self) -> None:
        """Let nobody wait longer than `ANSWER_SECONDS`. One look for all: a timer for each cost more than its batch."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            while self._deadlines and self._deadlines[0][0] <= now():
                _, stored = self._deadlines.popleft()
                if not stored.done():
                    stored.set_exception(TimeoutError())

    def _take(self) -> list[_Item]:
        """Return the next batch, oldest first, with each refid at most once: one UPDATE changes a row once."""
        taken: dict[str, tuple[str, bytes]] = {}
        for key in self._waiting:
            if len(taken) == MOST_IN_A_BATCH:
                break
            taken.setdefault(key[0], key)
        batch = [self._waiting.pop(key) for key in sorted(taken.values())]
        self._waiting_of -= Counter(taken.keys())
        if not self._waiting:
            self._arrived.clear()
        return batch

    async def _settle(self, batch: Sequence[_Item]) -> None:
        try:
            rows = await self._store([postback for postback, _ in batch])
        except UNAVAILABLE as exc:
            if len(batch) > 1 and sqlstate(exc).startswith(_OF_ONE_ROW):
                # One poisoned row must not fail its neighbours.
                for item in batch:
                    await self._settle([item])
                return
            log.error(  # noqa: TRY400 - hundreds of tracebacks tell no more
                "postbacks could not be stored", count=len(batch), error=type(exc).__name__, sqlstate=sqlstate(exc)
            )
            for stored in _still_waiting(batch):
                stored.set_exception(exc)
            return
        metrics.POSTBACK_BATCH.observe(len(batch))
        for item, row in zip(batch, rows, strict=True):
            for stored in _still_waiting([item]):
                stored.set_result(row)
        self._bell.ring(DUE)

    async def _store(self, batch: Sequence[Postback]) -> list[Row | None]:
        evidence = [postback.evidence for postback in batch]
        raws = [postback.raw for postback in batch]
        words = {
            name: [(getattr(each, name) or "")[:longest] or None for each in evidence]
            for name, longest in _LONGEST.items()
        }
        columns = words | {
            "refid": [postback.refid for postback in batch],
            "digest": [raw.digest for raw in raws],
            "body": [raw.body for raw in raws],
            "content_type": [raw.content_type for raw in raws],
            "remote": [raw.remote for raw in raws],
            "agrees": [agrees_with(each.says) or "" for each in evidence],
        }
        async with self._database.direct() as connection:
            found = {row.for_refid: row for row in await _TAKEN_IN.fetch(connection, **columns)}
        rows = [found[postback.refid] for postback in batch]
        return [row if row.refid is not None else None for row in rows]


def _still_waiting(batch: Sequence[_Item]) -> Iterator[_Stored]:
    return (stored for _, waiting in batch for stored in waiting if not stored.done())


# By name: with a star the statement would change its result, and fail once, when a migration adds a column.
_PAYMENT = ", ".join(f"p.{column.name}" for column in (payments.c.refid, payments.c.last_seq, *COLUMNS))
_MONTH = MONTH_OF.format(created_at="p.created_at")
_STORE = text(f"""
WITH item AS (
    SELECT * FROM unnest(
        CAST(:refid AS text[]), CAST(:digest AS bytea[]), CAST(:body AS bytea[]), CAST(:content_type AS text[]),
        CAST(:remote AS text[]), CAST(:agrees AS text[]), CAST(:tid AS text[]), CAST(:momtransactionid AS text[]),
        CAST(:payaccount AS text[]), CAST(:statusid AS text[]), CAST(:statusdesc AS text[])
    ) AS t (refid, digest, body, content_type, remote, agrees, tid, momtransactionid, payaccount, statusid, statusdesc)
), fresh AS (
    INSERT INTO bodies (refid, digest, month, source, body, content_type, remote)
    SELECT i.refid, i.digest, coalesce({_MONTH}, '-infinity'), 'postback', i.body, i.content_type, i.remote
    FROM item AS i LEFT JOIN payments AS p ON p.refid = i.refid ORDER BY i.refid
    -- Changes nothing, but locks the row, and so waits for a standby that the first one may not have waited for.
    ON CONFLICT (refid, digest, month) DO UPDATE SET source = excluded.source WHERE false
    RETURNING refid
), numbered AS (
    UPDATE payments AS p SET
        last_seq = p.last_seq + CASE WHEN fresh.refid IS NULL THEN 0 ELSE 1 END,
        wake_step = CASE WHEN p.status = i.agrees AND coalesce(p.tid = i.tid, true) THEN p.wake_step ELSE 0 END,
        next_check_at = CASE WHEN p.status = i.agrees AND coalesce(p.tid = i.tid, true) THEN p.next_check_at
                             ELSE greatest(now(), p.checked_at + interval '1 second') END,
        pruned_at = CASE WHEN fresh.refid IS NULL THEN p.pruned_at END,
        recheck = p.recheck OR (p.status = 'failed' AND i.agrees <> 'failed')
    FROM item AS i LEFT JOIN fresh ON fresh.refid = i.refid
    -- A repetition has no effect, unless it says "paid" of a failed payment that nobody looks at any more.
    WHERE p.refid = i.refid AND (
        fresh.refid IS NOT NULL OR (p.status = 'failed' AND i.agrees = 'succeeded' AND p.next_check_at IS NULL))
    RETURNING {_PAYMENT}
), noted AS (
    INSERT INTO events (refid, seq, type, source, status, tid, momtransactionid, payaccount, statusid, statusdesc)
    SELECT n.refid, n.last_seq, 'evidence', 'postback', n.status,
           i.tid, i.momtransactionid, i.payaccount, i.statusid, i.statusdesc
    FROM fresh JOIN numbered AS n ON n.refid = fresh.refid JOIN item AS i ON i.refid = n.refid
)
-- The updated rows as they are under their locks; a snapshot would miss what another commit has just decided.
SELECT refid AS for_refid, numbered.* FROM numbered
UNION ALL
SELECT i.refid, {_PAYMENT} FROM item AS i LEFT JOIN payments AS p ON p.refid = i.refid
WHERE NOT EXISTS (SELECT FROM numbered AS n WHERE n.refid = i.refid)
""")  # noqa: S608 - the names of our own columns
_TAKEN_IN = Prepared(_STORE)
