"""A payment at a fixed time, and how a row of the database takes a decision in."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from app.domain import FINAL, Evidence, Failure, FailureCode, Rules, Says, Snapshot, Source, Status, transition

REFID = "R1"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Rules(unknown_grace=120, check_schedule=[10, 20, 30], postback_rechecks=[2, 5, 15])

GRACE_BEGINS = 30.0
GRACE_ENDS = 150.0
FINAL_AT = 400.0
EXPIRES = 86_400.0

DECLINED = Failure(FailureCode.DECLINED, "the payer said no", "607")


def at(seconds: float) -> datetime:
    """Return the time so many seconds after the payment was made."""
    return T0 + timedelta(seconds=seconds)


def payment(status: Status, **changes: object) -> Snapshot:
    """Return a payment as the database has it in `status`: `succeeded` with its ids, `failed` with a look to come."""
    settled = status in FINAL
    snapshot = Snapshot(
        status=status,
        doubt_from=at(GRACE_BEGINS),
        expires_at=at(EXPIRES),
        final_at=at(EXPIRES if status is Status.EXPIRED else FINAL_AT) if settled else None,
        tid=None if status is Status.CREATED else "A1",
        momtransactionid="M1" if status is Status.SUCCEEDED else None,
        failure=DECLINED if status is Status.FAILED else None,
        recheck=status is Status.FAILED,
    )
    return replace(snapshot, **changes)  # type: ignore[arg-type] # Snapshot's own fields


def take_in(before: Snapshot, evidence: Evidence, now: datetime, rules: Rules = RULES) -> Snapshot:
    """Return the payment after a piece of evidence and after the clock, as the intake writes it to the row."""
    after = _apply(before, evidence, now, rules)
    if now >= after.expires_at:
        after = _apply(after, Evidence(Source.CLOCK, Says.TIME_UP), now, rules)
    return after


def _apply(before: Snapshot, evidence: Evidence, now: datetime, rules: Rules) -> Snapshot:
    decision = transition(before, evidence, rules)
    final_at = before.final_at
    if decision.status != before.status:
        final_at = now if decision.status in FINAL else None
    doubt = evidence.says is Says.IN_DOUBT and decision.status is Status.CREATED
    return replace(
        before,
        status=decision.status,
        final_at=final_at,
        failure=decision.failure,
        reviews=before.reviews | decision.reviews,
        tid=decision.tid,
        momtransactionid=decision.momtransactionid,
        recheck=decision.recheck,
        doubt_from=now if doubt else before.doubt_from,
    )
