"""What `transition` needs of a row of `payments`."""

from app.domain import Failure, FailureCode, Review, Snapshot, Status
from app.models import Row, payments

COLUMNS = tuple(
    payments.c[name]
    for name in (
        *("status", "doubt_from", "expires_at", "final_at", "tid", "momtransactionid"),
        *("failure_code", "failure_detail", "failure_retcode", "retcode", "review_reasons"),
        *("recheck", "check_step", "wake_step"),
    )
)


def snapshot(row: Row) -> Snapshot:
    """Return a payment as `transition` takes it; the row has at least `COLUMNS`."""
    failure = None
    if row.failure_code is not None:
        failure = Failure(FailureCode(row.failure_code), row.failure_detail, row.failure_retcode)
    return Snapshot(
        status=Status(row.status),
        doubt_from=row.doubt_from,
        expires_at=row.expires_at,
        final_at=row.final_at,
        tid=row.tid,
        momtransactionid=row.momtransactionid,
        failure=failure,
        retcode=row.retcode,
        reviews=frozenset(Review(reason) for reason in row.review_reasons),
        recheck=row.recheck,
        check_step=row.check_step,
        wake_step=row.wake_step,
    )
