"""Reconciliation: ask K-Pay what became of every payment that is due, and hand the answer on.

Any number of processes share the work. A claim is a lease on the payment's own row, taken in one short transaction;
the call runs in none; the answer is taken in under the row's lock and decided on what the row says then. A lease
that ran out costs a second question, never a wrong answer.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from cachetools import TTLCache
from sqlalchemy import (
    Boolean,
    Integer,
    Interval,
    Text,
    and_,
    any_,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from app.bell import DUE, Bell
from app.breaker import Breaker
from app.database import ANSWER_SECONDS, UNAVAILABLE, Database, Direct, Prepared
from app.domain import OPEN, Evidence, Says, Source, Status
from app.intake import Intake
from app.kpay import meaning
from app.kpay.client import GatewayError, KPay
from app.kpay.unseen import Unseen
from app.models import Row, or_never, payments
from app.raw import Raw

log = structlog.get_logger()

LOOK_EVERY = 0.5
"""Seconds between two looks for due payments that no bell has announced."""

_EVER = datetime.fromtimestamp(0, UTC)
_LOOK_AT_ALL_EVERY = 2.0
_NOT_YET_SEEN = timedelta(seconds=ANSWER_SECONDS)
"""How long a commit may take that makes a payment due: one that is due since then may show only now."""

_LEASE_MARGIN = 10.0
_REST = 2.0
_LONG_OVER = text("interval '7 days'")
_IS_OPEN = payments.c.status.in_([literal(status) for status in sorted(OPEN)])
_MAY_CHANGE = or_(
    _IS_OPEN,
    # One that failed and is to be looked at once more has its time for that: asked early, K-Pay may not know it yet.
    and_(
        or_(payments.c.status == Status.EXPIRED, payments.c.next_check_at.is_(None)),
        payments.c.status != Status.SUCCEEDED,
        payments.c.final_at > func.now() - _LONG_OVER,
    ),
)
_IS_FREE = or_(payments.c.leased_until.is_(None), payments.c.leased_until < func.now())

_IS_OURS = payments.c.gateway == bindparam("ours")
_CANDIDATES = Prepared(
    select(payments.c.refid, payments.c.next_check_at, func.now().label("now"))
    .where(payments.c.next_check_at.between(bindparam("since"), func.now()), _IS_OURS, _IS_FREE)
    .order_by(payments.c.next_check_at)
    .limit(bindparam("most", type_=Integer))
)
_LEASE = (
    update(payments)
    .values(leased_until=func.now() + bindparam("lease", type_=Interval))
    .returning(payments.c.refid, func.now().label("now"))
)
_LEASE_DUE = Prepared(
    _LEASE.where(
        payments.c.refid == any_(bindparam("refids", type_=ARRAY(Text))),
        or_never(payments.c.next_check_at) <= func.now(),
        _IS_OURS,
        _IS_FREE,
    )
)
_LEASE_STALE = Prepared(
    _LEASE.where(
        payments.c.refid == bindparam("of"),
        _MAY_CHANGE,
        _IS_FREE,
        or_(payments.c.checked_at.is_(None), payments.c.checked_at < func.now() - bindparam("spacing", type_=Interval)),
    )
)
_TIME_IS_UP = Prepared(
    select(payments.c.refid)
    .where(
        payments.c.next_check_at <= func.now(),
        payments.c.expires_at <= func.now(),
        or_(payments.c.gateway != bindparam("ours"), bindparam("own", type_=Boolean)),
        _IS_OPEN,
    )
    .limit(literal_column("100", Integer))  # no parameter, or a plan for all values would make it a tenth of them
)
_CLOCK = Prepared(select(func.now().label("now")))
_NO_LINE = nullcontext()


@dataclass(frozen=True, slots=True)
class Claim:
    """A payment that this process is to ask about, and when it was claimed (database time)."""

    refid: str
    at: datetime


class Reconciler:
    """Checks for one gateway; payments of another are never touched (docs/rules.md, 8)."""

    def __init__(
        self,
        *,
        database: Database,
        intake: Intake,
        kpay: KPay,
        bell: Bell,
        unseen: Unseen,
        gateway: str,
        gateway_timeout: float,
        concurrency: int,
        breaker: Breaker,
    ) -> None:
        self._database = database
        self._intake = intake
        self._kpay = kpay
        self._bell = bell
        self._unseen = unseen
        self._gateway = gateway
        self._lease_time = timedelta(seconds=gateway_timeout + _LEASE_MARGIN)
        self._concurrency = concurrency
        self._asking: dict[str, asyncio.Task[Row | None]] = {}
        self._following: dict[str, asyncio.Task[Row | None]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._looked: TTLCache[str, bool] = TTLCache(10_000, _REST, time.monotonic)
        self._line = asyncio.Semaphore(concurrency)
        self._expire_at = 0.0
        self._look_at_all_at = 0.0
        self._due_since = _EVER
        self.breaker = breaker

    async def run(self, stopping: asyncio.Event) -> None:
        """Check whatever is due, `concurrency` questions at once, until `stopping`; then finish what is under way.

        As many again are claimed ahead or being written down, so that no question waits for either. And some at a
        time: a claim for each one that ends would cost as much as a tenth of its check.
        """
        under_way: set[asyncio.Task[None]] = set()
        most, some = 2 * self._concurrency, max(1, self._concurrency // 4)
        has_room = asyncio.Event()

        def end(task: asyncio.Task[None]) -> None:
            under_way.discard(task)
            if len(under_way) <= most - some:
                has_room.set()

        with self._bell.listen(DUE) as due:
            while not stopping.is_set():
                wanted = most - len(under_way)
                claims = await self._claim(wanted)
                for claim in claims:
                    task = asyncio.create_task(self._check_claimed(claim, self._line))
                    under_way.add(task)
                    task.add_done_callback(end)
                if len(claims) < wanted:
                    await due.within(LOOK_EVERY)
                elif len(under_way) > most - some:  # some may have ended during the claim
                    has_room.clear()
                    await has_room.wait()
        if under_way:
            await asyncio.wait(under_way)

    async def look(self, row: Row, spacing: float) -> None:
        """Ask K-Pay about a payment whose payer is here, unless it was asked within `spacing` seconds; return after it.

        Danger: anybody who has the payer's link can ask for this. So it respects the breaker, takes the lease that
        a scheduled check takes (all processes together ask once), rests where K-Pay says nothing, leaves room for
        the checks that are due, and lets a final payment be after a week.
        """
        looking = self._looking.get(row.refid)
        if looking is None:
            busy = (
                row.status == Status.SUCCEEDED or row.refid in self._looked or len(self._looking) >= self._concurrency
            )
            if busy or row.gateway != self._gateway or not self.breaker.room(time.monotonic(), 1):
                return
            self._looked[row.refid] = True
            self.breaker.begun()  # before anything is waited for: of many payers who come at once one may probe
            looking = self._looking[row.refid] = asyncio.create_task(self._look(row.refid, timedelta(seconds=spacing)))
            # Whoever waits may be gone by then: an error that nobody fetches is not worth a warning.
            looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(looking)

    async def _look(self, refid: str, spacing: timedelta) -> None:
        claims: Sequence[Claim] = ()
        try:
            async with self._database.direct() as by:
                claims = await self._take_leases(by, _LEASE_STALE, {"of": refid, "spacing": spacing})
            for claim in claims:
                await self._check_claimed(claim)
        finally:
            del self._looking[refid]
            if not claims:
                self.breaker.undecided()

    async def finish(self) -> None:
        """Wait for the answers to what payers have asked: a lease that is left behind keeps others from asking."""
        if self._looking:
            await asyncio.wait(self._looking.values())

    async def check_now(self, row: Row) -> Row:
        """Ask K-Pay about one payment now, whatever the breaker thinks, and return the payment after that.

        One question at a time: whoever comes while it is under way shares the next one, which is put after they came.
        """
        question = self._following.get(row.refid)
        if question is None:
            question = asyncio.create_task(self._check_in_turn(row.refid, self._asking.get(row.refid)))
            # Whoever waits may be gone by then: an error that nobody fetches is not worth a warning.
            question.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._following[row.refid] = question
        return await asyncio.shield(question) or row

    async def _check_in_turn(self, refid: str, before: "asyncio.Task[Row | None] | None") -> Row | None:
        if before is not None:
            await asyncio.wait([before])
        self._asking[refid] = mine = self._following.pop(refid)
        try:
            async with self._database.direct() as by:
                [clock] = await _CLOCK.fetch(by)
            return await self._check(refid, clock.now)
        finally:
            if self._asking[refid] is mine:
                del self._asking[refid]

    async def _claim(self, most: int) -> Sequence[Claim]:
        """Lease up to `most` due payments; while the breaker is open one probe, or none."""
        room = self.breaker.room(time.monotonic(), most)
        try:
            if time.monotonic() >= self._expire_at:
                await self._let_expire(own=room < most)
            claims = await self._lease(room) if room else []
        except UNAVAILABLE as exc:
            log.error("due payments could not be claimed", error=type(exc).__name__)  # noqa: TRY400 - every second
            await asyncio.sleep(1)
            return []
        if claims:
            self.breaker.begun()
        return claims

    async def _lease(self, most: int) -> Sequence[Claim]:
        """Take leases: candidates without a lock, then an UPDATE that only one claimant's condition survives.

        Looks from where the last look began. Before that are those that are being asked about, and the dead entries
        of those that were: vacuum leaves them in a large table. Whoever else is there is found every two seconds.
        """
        if time.monotonic() >= self._look_at_all_at:
            self._look_at_all_at, self._due_since = time.monotonic() + _LOOK_AT_ALL_EVERY, _EVER
        async with self._database.direct() as by:
            found = await _CANDIDATES.fetch(by, since=self._due_since, ours=self._gateway, most=most)
            if not found:
                return []
            self._due_since = min(found[0].next_check_at, found[0].now - _NOT_YET_SEEN)
            refids = sorted(row.refid for row in found)
            return await self._take_leases(by, _LEASE_DUE, {"refids": refids, "ours": self._gateway})

    async def _take_leases(self, by: Direct, statement: Prepared, wanted: Mapping[str, Any]) -> Sequence[Claim]:
        leased = await statement.fetch(by, **wanted, lease=self._lease_time)
        return [Claim(row.refid, row.now) for row in leased]

    async def _let_expire(self, *, own: bool) -> None:
        """Expire open payments whose time is up and that are not asked about: another gateway's; ours where `own`.

        Where one is locked, or too many are due to be looked at, they are expired later: checks must not wait for that.
        """
        try:
            for row in await self._overdue(own=own):
                await self._intake.take_in(row.refid, None)
        except UNAVAILABLE as exc:
            log.error("overdue payments could not be expired", error=type(exc).__name__)  # noqa: TRY400 - twice a second

    async def _overdue(self, *, own: bool) -> Sequence[Row]:
        self._expire_at = time.monotonic() + LOOK_EVERY
        async with self._database.direct() as by:
            began = time.monotonic()
            overdue = await _TIME_IS_UP.fetch(by, ours=self._gateway, own=own)
            # It looks at all that is due, and after an outage that may be many: no claim waits for it again so soon.
            looked = time.monotonic()
            self._expire_at = looked + max(LOOK_EVERY, 10 * (looked - began))
        return overdue

    async def _check_claimed(self, claim: Claim, line: AbstractAsyncContextManager[object] = _NO_LINE) -> None:
        claimed, is_probe = time.monotonic(), self.breaker.is_open
        try:
            async with line:
                if self.breaker.is_open and not is_probe:
                    return  # K-Pay is not well: whoever claims it when its lease has run out asks
                if time.monotonic() - claimed > _LEASE_MARGIN:
                    if is_probe:
                        self.breaker.undecided()  # it was none: another may go out
                    return  # the lease would run out before the answer
                answer = await self._ask(claim.refid, claim.at)
            await self._intake.take_in(claim.refid, *answer)
        except Exception:
            # The lease runs out and somebody asks again. One payment's trouble must not end the checks of all.
            log.exception("a check failed", refid=claim.refid)

    async def _check(self, refid: str, at: datetime) -> Row | None:
        evidence, raw = await self._ask(refid, at)
        return await self._intake.take_in(refid, evidence, raw)

    async def _ask(self, refid: str, at: datetime) -> tuple[Evidence, Raw]:
        try:
            answer = await self._kpay.checkstatus(refid)
        except GatewayError as exc:
            self.breaker.failed(time.monotonic(), str(exc))
            return meaning.question_failed(str(exc), at), Raw.observation(Source.CHECKSTATUS, str(exc))
        self._unseen.look(answer.message, answer.content_type)
        evidence = meaning.of_checkstatus(answer.message, refid, at)
        if evidence.says is Says.QUESTION_REFUSED:
            code = evidence.retcode or evidence.statusid
            why = f"K-Pay answers {code}" if code else f"K-Pay answers HTTP {answer.http_status}, which cannot be read"
            log.error("K-Pay refuses the question", refid=refid, http_status=answer.http_status, reason=why)
            if meaning.refuses_questions(evidence):
                self.breaker.failed(time.monotonic(), why)
            else:
                self.breaker.judge(time.monotonic(), answer.http_status, why, refuses_us=meaning.refuses_us(evidence))
        else:
            self.breaker.succeeded()
        if evidence.says is Says.NOTHING:
            log.error("K-Pay's answer says nothing of the payment", refid=refid, http_status=answer.http_status)
        return evidence, Raw.answer(Source.CHECKSTATUS, answer)
