"""Intake: whatever is learnt about a payment, by whomever, ends here. This module is the one writer of `status`.

Lock the row, decide by `transition`, write row and timeline in one commit. Rows are locked one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy import Date, Text, bindparam, exists, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from app import metrics
from app.bell import Bell, of_payment
from app.database import Database, Direct, Prepared
from app.domain import (
    EVIDENCE,
    FINAL,
    OPEN,
    Decision,
    Evidence,
    Review,
    Rules,
    Says,
    Source,
    Status,
    is_overtaken,
    is_wake_unserved,
    next_check,
    transition,
)
from app.jitter import jitter
from app.models import Row, bodies, payments
from app.months import MONTH_OF
from app.raw import Raw
from app.settings import is_loopback
from app.snapshot import snapshot
from app.timeline import WORDS, noting, written

log = structlog.get_logger()

_WORDS_OF_THE_PAYMENT = frozenset(
    {
        Says.PAID,
        Says.NOT_PAID,
        Says.PENDING,
        Says.REFUSED,
        Says.REFUSED_AFTER_TID,
        Says.IN_DOUBT,
        Says.NOT_SENT,
    }
)


_NOW = func.now().label("now")
_LOCK = select(payments, _NOW).where(payments.c.refid == bindparam("of")).with_for_update()
_LOCKED = Prepared(_LOCK)
_SAID = ("digest", "source", "body", "content_type", "http_status", "remote")
_TO_KEEP = _LOCK.cte("locked")
_KEPT = (
    upsert(bodies)
    .from_select(
        ["refid", "month", *_SAID],
        select(
            _TO_KEEP.c.refid,
            literal_column(MONTH_OF.format(created_at="locked.created_at"), Date()),
            *(bindparam(name, type_=bodies.c[name].type) for name in _SAID),
        ),
    )
    .on_conflict_do_nothing()
    .returning(bodies.c.refid)
    .cte("kept")
)
# False where the same source had said the same before.
_LOCKED_AND_KEPT = Prepared(select(_TO_KEEP, exists(select(_KEPT.c.refid)).label("fresh")))
# All that can change is written, so that one statement does: what did not has the value that was read under the lock.
_CHANGEABLE = (
    *("status", "failure_code", "failure_detail", "failure_retcode", "review_reasons", "last_seq"),
    *("tid", "checkout_url", "momtransactionid", "payaccount", "statusid", "statusdesc", "retcode"),
    *("updated_at", "final_at", "doubt_from", "checked_at", "leased_until", "pruned_at"),
    *("next_check_at", "check_step", "wake_step", "recheck"),
)
_CHANGE = (
    update(payments)
    .where(payments.c.refid == bindparam("of"))
    .values({name: bindparam(name) for name in _CHANGEABLE})
    .returning(payments.c.refid)
)
_CHANGED = Prepared(_CHANGE)
_CHANGED_AND_NOTED = Prepared(noting(_CHANGE))
_LOCK_NUMBER = Prepared(
    select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("number", type_=Text), 0)).label("locked"))
)
_OTHERS = Prepared(
    select(payments.c.refid)
    .where(payments.c.momtransactionid == bindparam("number"), payments.c.refid != bindparam("of"))
    .limit(10)
)
_PAID_TOO = Prepared(
    select(payments.c.refid)
    .where(payments.c.client == bindparam("ours"), payments.c.orderid == bindparam("order"))
    # In words that the index of statuses does not know: an order has few payments, a status has all.
    .where(payments.c.refid != bindparam("of"), func.coalesce(payments.c.status, "") == Status.SUCCEEDED)
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say about taking evidence in."""

    rules: Rules
    checkout_hosts: frozenset[str]


def may_send_payers_to(url: str, hosts: frozenset[str]) -> bool:
    """Whether a payer's browser may be sent to `url`: by https (http on loopback) to one of `hosts`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if "\\" in url or "@" in parts.netloc:
        return False  # a browser may read another host in it than we do
    host = parts.hostname or ""
    return host in hosts and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


class Intake:
    """The one writer of what is known of a payment. `bell` is told after a commit that put something on a timeline."""

    def __init__(self, database: Database, policy: Policy, bell: Bell) -> None:
        self._database = database
        self.policy = policy
        self._bell = bell

    async def take_in(self, refid: str, evidence: Evidence | None, raw: Raw | None = None) -> Row | None:
        """Take in one piece of evidence (None: only the clock) and return the payment, or None where there is none.

        Under the row's lock; idempotent, since `transition` is. What changed is in the timeline as `payment.*`, what
        changed nothing as `evidence`, and the same words from the same source stand there once.
        """
        async with self._database.direct_transaction() as by:
            row = await (_LOCKED.first(by, of=refid) if raw is None else _lock_and_keep(by, refid, raw))
            if row is None:
                return None
            fresh = raw is not None and row.fresh
            work = _Work(row, self.policy)
            if evidence is not None:
                await work.apply(by, evidence, fresh=fresh)
            if row.now >= row.expires_at and work.payment.status in OPEN:
                await work.apply(by, Evidence(Source.CLOCK, Says.TIME_UP), fresh=False)
            after = await work.write(by)
        self._tell(row, after, work)
        for other in work.shares_with:
            await self._flag_shared(other)
        return after

    async def _flag_shared(self, refid: str) -> None:
        evidence = Evidence(Source.CHECKSTATUS, Says.NOTHING)
        async with self._database.direct_transaction() as by:
            [row] = await _LOCKED.fetch(by, of=refid)
            work = _Work(row, self.policy)
            work.review(evidence, frozenset({Review.MOMTRANSACTIONID_SHARED}))
            after = await work.write(by)
        self._tell(row, after, work)

    def _tell(self, before: Row, after: Row, work: "_Work") -> None:
        for reason in sorted(work.new_reviews):
            metrics.REVIEWS.labels(reason).inc()
            log.warning("payment needs review", refid=after.refid, reason=reason)
        if after.status != before.status:
            metrics.PAYMENTS.labels(after.status, after.pmethod).inc()
            log.info(
                "payment changed", refid=after.refid, status=after.status, was=before.status, failure=after.failure_code
            )
        if work.entries:
            self._bell.announce(of_payment(after.refid))


async def _lock_and_keep(by: Direct, refid: str, raw: Raw) -> Row | None:
    """Lock the payment and store a raw body; the row tells whether it is `fresh`."""
    return await _LOCKED_AND_KEPT.first(by, of=refid, **{name: getattr(raw, name) for name in _SAID})


class _Work:
    """One payment under its lock: what was read, what was decided, what is to be written."""

    def __init__(self, row: Row, policy: Policy) -> None:
        self._row = row
        self._policy = policy
        self.payment = snapshot(row)
        self.values: dict[str, Any] = {}
        self.entries: list[dict[str, Any]] = []
        self.new_reviews: frozenset[Review] = frozenset()
        self.shares_with: Sequence[str] = ()

    async def apply(self, by: Direct, evidence: Evidence, *, fresh: bool) -> None:
        """Decide on one piece of evidence and note what it changes; a `fresh` one is noted even if that is nothing."""
        if is_overtaken(self.payment, evidence):
            evidence = replace(evidence, says=Says.NOTHING)
        decision = transition(self.payment, evidence, self._policy.rules)
        reviews = decision.reviews
        if decision.momtransactionid != self.payment.momtransactionid and decision.momtransactionid:
            self.shares_with = await _others_with(by, decision.momtransactionid, self._row.refid)
            reviews |= {Review.MOMTRANSACTIONID_SHARED} if self.shares_with else set()
        changed = decision.status != self.payment.status
        if changed and decision.status is Status.SUCCEEDED and await _order_is_paid(by, self._row):
            reviews |= {Review.ORDER_PAID_TWICE}
        if changed:
            final_at = self._row.now if decision.status in FINAL else None
            self.values |= {"status": decision.status, "final_at": final_at}
            self._set(final_at=final_at)
            self._note(f"payment.{decision.status}", evidence, decision.status)
        self._learn(decision, evidence, changed=changed)
        if reviews:
            self.review(evidence, reviews)
        if fresh and not changed and not reviews:
            self._note(EVIDENCE, evidence, decision.status)
        self._schedule(evidence)

    def review(self, evidence: Evidence, reasons: frozenset[Review]) -> None:
        """Note reasons for a review that the payment did not have."""
        self.new_reviews |= reasons - self.payment.reviews
        if not reasons - self.payment.reviews:
            return
        self._note("payment.needs_review", evidence, self.payment.status, detail=", ".join(sorted(reasons)))
        self._set(reviews=self.payment.reviews | reasons)
        self.values["review_reasons"] = sorted(self.payment.reviews)

    def _learn(self, decision: Decision, evidence: Evidence, *, changed: bool) -> None:
        """Take over what the evidence tells besides the status; nothing overwrites the words of a success."""
        settled = self.payment.status is Status.SUCCEEDED
        self._set(
            status=decision.status,
            failure=decision.failure,
            tid=decision.tid,
            momtransactionid=decision.momtransactionid,
            recheck=decision.recheck,
        )
        failure = decision.failure
        self.values |= {
            "tid": decision.tid,
            "momtransactionid": decision.momtransactionid,
            "recheck": decision.recheck,
            "failure_code": failure and failure.code,
            "failure_detail": failure and failure.detail,
            "failure_retcode": failure and failure.retcode,
        }
        if evidence.says is Says.IN_DOUBT and self.payment.status is Status.CREATED:
            self._set(doubt_from=self._row.now)
            self.values["doubt_from"] = self._row.now
        if evidence.source is Source.CHECKSTATUS and evidence.says is not Says.QUESTION_REFUSED:
            self.values["checked_at"] = self._row.now
        if evidence.hint or settled:
            return
        if changed or evidence.says in _WORDS_OF_THE_PAYMENT:
            told = {name: getattr(evidence, name) for name in ("statusid", "statusdesc", "payaccount", "retcode")}
            self.values |= {name: value for name, value in told.items() if value is not None}
        if evidence.source is Source.GATEWAY_REPLY:
            self.values["checkout_url"] = self._safe(evidence.checkout_url)

    def _safe(self, checkout_url: str | None) -> str | None:
        if checkout_url is None or may_send_payers_to(checkout_url, self._policy.checkout_hosts):
            return checkout_url
        metrics.GATEWAY_UNSEEN.labels("checkout_host").inc()
        log.error("K-Pay's checkout url is on a host that KPAYD_CHECKOUT_HOSTS does not name", refid=self._row.refid)
        return None

    def _schedule(self, evidence: Evidence) -> None:
        """Set when K-Pay is asked next, unless a postback has asked for a check that nobody has made yet."""
        if evidence.hint:
            return
        if evidence.asked_at is not None:
            self.values["leased_until"] = None  # the question that the lease was for has been answered
        unserved = is_wake_unserved(self.payment, self._row.next_check_at, evidence.asked_at)
        if unserved and self.payment.status is not Status.SUCCEEDED:
            # From now on: whoever looks for what is due does not look back for long.
            self.values["next_check_at"] = max(self._row.next_check_at, self._row.now)
            return
        if self._is_news_of_nothing_early(evidence):
            return
        seconds, moved = next_check(self.payment, self._policy.rules, self._row.now, jitter())
        self.payment = moved
        self.values |= {
            "next_check_at": None if seconds is None else self._row.now + timedelta(seconds=seconds),
            "check_step": moved.check_step,
            "wake_step": moved.wake_step,
        }

    def _is_news_of_nothing_early(self, evidence: Evidence) -> bool:
        """Whether somebody asked before it was due and learnt nothing: the check that is due stays as it is.

        Else whoever asks often, a payer who looks at a page, would wear the schedule down to its longest pause.
        """
        due, asked = self._row.next_check_at, evidence.asked_at
        early = due is not None and asked is not None and asked < due
        return early and "status" not in self.values and self.payment.status in OPEN | {Status.EXPIRED}

    async def write(self, by: Direct) -> Row:
        """Write the row and its new timeline entries; return the row as it is then."""
        if not self.values:
            return self._row
        values = {name: getattr(self._row, name) for name in _CHANGEABLE} | self.values
        if self.entries:
            last_seq = self._row.last_seq + len(self.entries)
            values |= {"last_seq": last_seq, "updated_at": self._row.now, "pruned_at": None}
            noted = written(self.entries, values)
            [_] = await _CHANGED_AND_NOTED.fetch(by, of=self._row.refid, **values, entries=noted)
        else:
            [_] = await _CHANGED.fetch(by, of=self._row.refid, **values)
        return self._row._replace(**values)

    def _note(self, type_: str, evidence: Evidence, status: Status, *, detail: str | None = None) -> None:
        self.entries.append(
            {name: getattr(evidence, name) for name in WORDS}
            | {
                "seq": self._row.last_seq + len(self.entries) + 1,
                "type": type_,
                "source": evidence.source,
                "status": status,
                "detail": detail or evidence.note,
            }
        )

    def _set(self, **changes: Any) -> None:  # noqa: ANN401 - Snapshot's own fields
        self.payment = replace(self.payment, **changes)


async def _order_is_paid(by: Direct, row: Row) -> bool:
    """Whether another payment of the same client's order has succeeded."""
    if row.orderid is None:
        return False
    return await _PAID_TOO.first(by, ours=row.client, order=row.orderid, of=row.refid) is not None


async def _others_with(by: Direct, momtransactionid: str, refid: str) -> Sequence[str]:
    """Return the other payments that carry `momtransactionid`; of two that ask at once, the later sees the first."""
    await _LOCK_NUMBER.fetch(by, number=momtransactionid)
    return [other.refid for other in await _OTHERS.fetch(by, number=momtransactionid, of=refid)]
