"""The rules of truth (docs/rules.md) as pure code: statuses, evidence and the one function that decides.

    a request, a postback, a checkstatus answer or silence -> Evidence -> `transition` -> Decision

No I/O and no clock of its own: time is an argument. Whoever applies a `Decision` holds the payment's row lock.
The rules are numbered as there; K-Pay's codes become `Says` in `app.kpay.meaning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum


class Status(StrEnum):
    """Where a payment stands. The first two are open; `succeeded` is never left; the rest accept a late truth."""

    CREATED = "created"
    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"


class Scope(StrEnum):
    """What an API key may be used for."""

    PAYMENTS_WRITE = "payments:write"
    PAYMENTS_READ = "payments:read"
    TOKENS_WRITE = "tokens:write"
    EVENTS_READ = "events:read"


EVIDENCE = "evidence"
"""The type of a timeline entry that changed nothing; those of changes are `payment.*`."""

OPEN = frozenset({Status.CREATED, Status.PENDING})
FINAL = frozenset(Status) - OPEN


class Source(StrEnum):
    """Where a piece of evidence came from."""

    CALLER = "caller"
    GATEWAY_REPLY = "gateway_reply"
    POSTBACK = "postback"
    CHECKSTATUS = "checkstatus"
    CLOCK = "clock"
    OPERATOR = "operator"


class Says(StrEnum):
    """What a piece of evidence says of a payment."""

    PAID = "paid"
    NOT_PAID = "not_paid"
    PENDING = "pending"
    NOT_FOUND = "not_found"
    """K-Pay does not know the refid (611): not yet, or never."""
    REFUSED = "refused"
    """K-Pay turned the request away before it recorded anything."""
    REFUSED_AFTER_TID = "refused_after_tid"
    """K-Pay began, gave a tid and gave up (606, 607): failed, and worth one more look."""
    NOT_SENT = "not_sent"
    """No connection came about: K-Pay cannot have the request."""
    IN_DOUBT = "in_doubt"
    """The request may or may not have landed (timeout, reset, unreadable, 608, 604): never guessed, asked about."""
    QUESTION_REFUSED = "question_refused"
    """K-Pay refused our question or could not be asked: that says nothing of the payment."""
    NOTHING = "nothing"
    """Kept, but it has no meaning for the status: a garbled postback, a word never seen."""
    TIME_UP = "time_up"
    """No final word within `EXPIRE_AFTER`."""


class FailureCode(StrEnum):
    """Why a payment failed, in words that a caller can act on."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    DUPLICATE_REFID = "duplicate_refid"
    NOT_RECEIVED = "not_received"
    GATEWAY_UNREACHABLE = "gateway_unreachable"
    MISCONFIGURED = "misconfigured"
    GATEWAY_ERROR = "gateway_error"
    OTHER = "other"


RETRYABLE = frozenset(
    {
        FailureCode.INSUFFICIENT_FUNDS,
        FailureCode.CANCELLED,
        FailureCode.DUPLICATE_REFID,
        FailureCode.NOT_RECEIVED,
        FailureCode.GATEWAY_UNREACHABLE,
        FailureCode.GATEWAY_ERROR,
    }
)
"""Failures after which the same order under a new refid may well succeed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a payment failed; `detail` is what K-Pay said, in its words."""

    code: FailureCode
    detail: str
    retcode: str | None = None

    @property
    def retryable(self) -> bool:
        """Whether starting again under a new refid may well succeed."""
        return self.code in RETRYABLE


class Review(StrEnum):
    """Why a person should look at a payment."""

    CONTRADICTION = "contradiction"
    """Evidence against a payment that K-Pay had said was paid."""
    LATE_SUCCESS = "late_success"
    """Paid after the caller had been told that it failed."""
    ALIVE_AFTER_FAILURE = "alive_after_failure"
    """K-Pay still has a payment open that the caller was told had failed."""
    TID_MISMATCH = "tid_mismatch"
    MOMTRANSACTIONID_MISSING = "momtransactionid_missing"
    MOMTRANSACTIONID_UNEXPECTED = "momtransactionid_unexpected"
    MOMTRANSACTIONID_CHANGED = "momtransactionid_changed"
    MOMTRANSACTIONID_SHARED = "momtransactionid_shared"
    DUPLICATE_REFID = "duplicate_refid"
    """K-Pay called our first request a repetition: the payment it knows under this refid may be another's."""
    ORDER_PAID_TWICE = "order_paid_twice"
    FORGOTTEN = "forgotten"
    """K-Pay accepted the payment and later said that it does not know it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence: who says what of a payment, and the words that came with it.

    `asked_at` is when the question was put (database time) where there was one. `hint` marks a postback that
    wakes a check and decides nothing (`CONFIRM=always`).
    """

    source: Source
    says: Says
    hint: bool = False
    asked_at: datetime | None = None
    tid: str | None = None
    momtransactionid: str | None = None
    payaccount: str | None = None
    statusid: str | None = None
    statusdesc: str | None = None
    retcode: str | None = None
    note: str | None = None
    """What we noticed ourselves where K-Pay said nothing."""
    checkout_url: str | None = None
    failure: Failure | None = None
    duplicate: bool = False
    """K-Pay answered that it had this refid before (608)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `transition` needs to know of a payment, read under its row lock."""

    status: Status
    doubt_from: datetime
    """From when on a 611 may be counted: the end of the payment request, or its latest possible end."""
    expires_at: datetime
    final_at: datetime | None = None
    tid: str | None = None
    momtransactionid: str | None = None
    failure: Failure | None = None
    retcode: str | None = None
    reviews: frozenset[Review] = frozenset()
    recheck: bool = False
    """A failed payment that is to be looked at once more."""
    check_step: int = 0
    wake_step: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decisions depend on, in seconds."""

    unknown_grace: float
    check_schedule: Sequence[float]
    postback_rechecks: Sequence[float]


@dataclass(frozen=True, slots=True)
class Decision:
    """What one piece of evidence changes. `status` is the new one, or the old one where nothing moves."""

    status: Status
    failure: Failure | None
    reviews: frozenset[Review]
    """Reasons that are new: those the payment had already are not among them."""
    tid: str | None
    momtransactionid: str | None
    recheck: bool


def transition(payment: Snapshot, evidence: Evidence, rules: Rules) -> Decision:
    """Decide what `evidence` changes about `payment`. Every pair has an answer; doing it twice is doing it once.

    Promise: `succeeded` is never left (rule 4), is entered on K-Pay's own word only (rule 5), and an outcome that
    is unknown stays unknown (rule 3).
    """
    if is_overtaken(payment, evidence):
        evidence = replace(evidence, says=Says.NOTHING)
    status, failure, recheck = _status(payment, evidence, rules)
    said = _reviews(payment, evidence, rules, status)
    return Decision(
        status=status,
        failure=failure,
        reviews=said - payment.reviews,
        # A hint binds nothing: tid and momtransactionid are taken from K-Pay's answers to our own questions.
        tid=payment.tid or (None if evidence.hint else evidence.tid),
        momtransactionid=payment.momtransactionid or (None if evidence.hint else evidence.momtransactionid),
        recheck=recheck,
    )


def is_overtaken(payment: Snapshot, evidence: Evidence) -> bool:
    """Whether this "not yet" was said before the final word: answers can arrive out of order."""
    if payment.final_at is None or evidence.says not in (Says.PENDING, Says.NOT_FOUND, Says.IN_DOUBT):
        return False
    asked_before = evidence.asked_at is not None and evidence.asked_at <= payment.final_at
    return asked_before or evidence.source in (Source.GATEWAY_REPLY, Source.POSTBACK)


def _status(  # noqa: C901, PLR0911 - one arm a rule
    payment: Snapshot, evidence: Evidence, rules: Rules
) -> tuple[Status, Failure | None, bool]:
    """Return status, failure and whether to look once more."""
    now, stays = payment.status, (payment.status, payment.failure, payment.recheck)
    if now is Status.SUCCEEDED or evidence.hint:
        return stays
    match evidence.says:
        case Says.PAID:
            return Status.SUCCEEDED, None, False
        case Says.NOT_PAID if now is not Status.FAILED:
            return Status.FAILED, evidence.failure, False
        case Says.NOT_PAID:
            # Already failed: K-Pay's own last word ends the looking.
            return Status.FAILED, payment.failure, False
        case Says.PENDING if now is Status.CREATED:
            return Status.PENDING, None, False
        case Says.PENDING if now is Status.FAILED:
            return Status.FAILED, payment.failure, True
        case Says.REFUSED | Says.NOT_SENT if now is Status.CREATED:
            return Status.FAILED, evidence.failure, False
        case Says.REFUSED_AFTER_TID if now is Status.CREATED:
            return Status.FAILED, evidence.failure, True
        case Says.NOT_FOUND if now is Status.CREATED and _past_grace(payment, evidence, rules):
            detail = evidence.statusdesc or "K-Pay does not know this refid"
            return Status.FAILED, Failure(FailureCode.NOT_RECEIVED, detail, payment.retcode or evidence.statusid), True
        case Says.NOT_FOUND if now is Status.FAILED and payment.wake_step is None:
            return Status.FAILED, payment.failure, False
        case Says.TIME_UP if now in OPEN:
            return Status.EXPIRED, None, False
    return stays


def _past_grace(payment: Snapshot, evidence: Evidence, rules: Rules) -> bool:
    """Whether the question behind a 611 was put late enough for the answer to be believed (rule 3)."""
    return evidence.asked_at is not None and evidence.asked_at >= grace_end(payment, rules)


def grace_end(payment: Snapshot, rules: Rules) -> datetime:
    """When a 611 begins to be believed."""
    return payment.doubt_from + timedelta(seconds=rules.unknown_grace)


def _reviews(payment: Snapshot, evidence: Evidence, rules: Rules, status: Status) -> frozenset[Review]:
    """Return every reason for a review that `evidence` gives (rules 4, 5 and 9)."""
    was, says = payment.status, evidence.says
    confirmed = not evidence.hint
    against = says in (Says.NOT_PAID, Says.REFUSED, Says.REFUSED_AFTER_TID) or (
        confirmed and says in (Says.NOT_FOUND, Says.PENDING)
    )
    reasons = {
        Review.CONTRADICTION: was is Status.SUCCEEDED and against,
        Review.LATE_SUCCESS: was is Status.FAILED and status is Status.SUCCEEDED,
        Review.ALIVE_AFTER_FAILURE: was is Status.FAILED and confirmed and says is Says.PENDING,
        Review.TID_MISMATCH: bool(payment.tid and evidence.tid and payment.tid != evidence.tid),
        Review.MOMTRANSACTIONID_MISSING: says is Says.PAID
        and not (evidence.momtransactionid or payment.momtransactionid),
        Review.MOMTRANSACTIONID_UNEXPECTED: says is Says.NOT_PAID and bool(evidence.momtransactionid),
        Review.MOMTRANSACTIONID_CHANGED: confirmed
        and says is Says.PAID
        and bool(payment.momtransactionid and evidence.momtransactionid)
        and payment.momtransactionid != evidence.momtransactionid,
        Review.DUPLICATE_REFID: evidence.duplicate,
        Review.FORGOTTEN: was is Status.PENDING
        and confirmed
        and says is Says.NOT_FOUND
        and _past_grace(payment, evidence, rules),
    }
    return frozenset(reason for reason, given in reasons.items() if given)


def changes_nothing(status: Status, tid: str | None, hint: Evidence) -> bool:
    """Whether a hint for a payment with this status and tid surely has no effect: most have none, and this is cheap.

    A hint moves nothing; what it may do is give a reason for a review. False where `transition` must say.
    """
    fits = hint.hint and not hint.duplicate and not (tid and hint.tid and tid != hint.tid)
    match hint.says:
        case Says.PAID:
            return fits and bool(hint.momtransactionid)
        case Says.NOT_PAID:
            return fits and not hint.momtransactionid and status is not Status.SUCCEEDED
        case Says.PENDING | Says.NOTHING:
            return fits
    return False


EXPIRED_CHECK = 86_400.0
EXPIRED_CHECKS_FOR = timedelta(days=7)


def next_check(payment: Snapshot, rules: Rules, now: datetime, jitter: float) -> tuple[float | None, Snapshot]:
    """Return the seconds until the next checkstatus (None: no more) and the payment with its steps moved on.

    `jitter` is a factor near 1, drawn by the caller. An open payment is never without a next check, and its last
    one before expiry falls on `expires_at`; an expired one is looked at daily for a week from when that was noticed.
    """
    last_look = max(payment.expires_at, payment.final_at or payment.expires_at) + EXPIRED_CHECKS_FOR
    if payment.status is Status.SUCCEEDED or (payment.status not in OPEN and now >= last_look):
        return None, replace(payment, wake_step=None)
    if payment.wake_step is not None and payment.wake_step < len(rules.postback_rechecks):
        seconds = rules.postback_rechecks[payment.wake_step] * jitter
        return _not_past_expiry(payment, seconds, now), replace(payment, wake_step=payment.wake_step + 1)
    rested = replace(payment, wake_step=None)
    if payment.status is Status.EXPIRED:
        return EXPIRED_CHECK * jitter, rested
    step = min(payment.check_step, len(rules.check_schedule) - 1)
    seconds = rules.check_schedule[step] * jitter
    if payment.status is Status.FAILED:
        if not payment.recheck:
            return None, rested
        # `wake_step` stays: as long as a postback disagrees, "not found" does not end the looking.
        return max(seconds, rules.unknown_grace * jitter), replace(payment, check_step=step + 1)
    if payment.status is Status.CREATED and now < grace_end(payment, rules):
        # The first 611 that can be believed is asked for as soon as it can be.
        seconds = min(seconds, (grace_end(payment, rules) - now).total_seconds())
    return _not_past_expiry(payment, seconds, now), replace(rested, check_step=step + 1)


def _not_past_expiry(payment: Snapshot, seconds: float, now: datetime) -> float:
    left = (payment.expires_at - now).total_seconds()
    return min(seconds, left) if payment.status in OPEN and left > 0 else seconds


def is_wake_unserved(payment: Snapshot, next_check_at: datetime | None, asked_at: datetime | None) -> bool:
    """Whether a postback has asked for a check (`wake_step` 0) and no question has been put since."""
    if payment.wake_step != 0 or next_check_at is None:
        return False
    return asked_at is None or next_check_at > asked_at


def agrees_with(says: Says) -> Status | None:
    """Return the status that a postback saying `says` confirms; in any other status it wakes a check."""
    return {Says.PAID: Status.SUCCEEDED, Says.NOT_PAID: Status.FAILED}.get(says)
