"""Every status met by every evidence, as one table that was written from the rules of truth by hand."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import (
    OPEN,
    Evidence,
    Failure,
    FailureCode,
    Review,
    Says,
    Snapshot,
    Source,
    Status,
    changes_nothing,
    transition,
)
from app.kpay import codes, meaning
from app.kpay.wire import Message

from .support import DECLINED, FINAL_AT, REFID, RULES, at, payment, take_in

# Cells: a status is the new one, `.` means that nothing changes, `+` adds a review, `recheck` asks for one more look,
# `settled` ends the looking. `hint` postbacks decide nothing, `early` questions were put before the grace ended and
# before the final word, all others after both; 608 is K-Pay's "I have this refid already".
TABLE = """
evidence                        | created        | pending    | succeeded      | failed                  | expired
gateway_reply paid              | succeeded      | succeeded  | .              | succeeded +late_success | succeeded
gateway_reply not_paid          | failed         | failed     | +contradiction | settled                 | failed
gateway_reply pending           | pending        | .          | .              | .                       | .
gateway_reply refused           | failed         | .          | +contradiction | .                       | .
gateway_reply refused_after_tid | failed recheck | .          | +contradiction | .                       | .
gateway_reply not_sent          | failed         | .          | .              | .                       | .
gateway_reply in_doubt          | .              | .          | .              | .                       | .
gateway_reply in_doubt 608      | +duplicate     | +duplicate | +duplicate     | +duplicate              | +duplicate
checkstatus paid                | succeeded      | succeeded  | .              | succeeded +late_success | succeeded
checkstatus paid early          | succeeded      | succeeded  | .              | succeeded +late_success | succeeded
checkstatus not_paid            | failed         | failed     | +contradiction | settled                 | failed
checkstatus not_paid early      | failed         | failed     | +contradiction | settled                 | failed
checkstatus pending             | pending        | .          | +contradiction | +alive_after_failure    | .
checkstatus pending early       | pending        | .          | .              | .                       | .
checkstatus not_found           | failed recheck | +forgotten | +contradiction | settled                 | .
checkstatus not_found early     | .              | .          | .              | .                       | .
checkstatus question_refused    | .              | .          | .              | .                       | .
checkstatus nothing             | .              | .          | .              | .                       | .
postback paid hint              | .              | .          | .              | .                       | .
postback not_paid hint          | .              | .          | +contradiction | .                       | .
postback pending hint           | .              | .          | .              | .                       | .
postback nothing hint           | .              | .          | .              | .                       | .
postback paid                   | succeeded      | succeeded  | .              | succeeded +late_success | succeeded
postback not_paid               | failed         | failed     | +contradiction | settled                 | failed
postback pending                | pending        | .          | .              | .                       | .
postback nothing                | .              | .          | .              | .                       | .
clock time_up                   | expired        | expired    | .              | .                       | .
"""
HEAD, *ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
STATUSES = [Status(name) for name in HEAD[1:]]
CASES = [
    pytest.param(row[0], status, cell, id=f"{status}-{row[0].replace(' ', '-')}")
    for row in ROWS
    for status, cell in zip(STATUSES, row[1:], strict=True)
]
REFUSAL = Failure(FailureCode.MISCONFIGURED, "Retailer not enabled", "605")


def evidence_of(words: str, before: Snapshot) -> Evidence:
    """Return the evidence that a row of the table names."""
    source, says, *more = words.split()
    late = at(500) if before.final_at is None else before.final_at.replace(microsecond=1)
    return Evidence(
        Source(source),
        Says(says),
        hint="hint" in more,
        asked_at=(at(100) if "early" in more else late) if source == Source.CHECKSTATUS else None,
        momtransactionid="M1" if says == Says.PAID else None,
        failure=REFUSAL if says in {Says.NOT_PAID, Says.REFUSED, Says.REFUSED_AFTER_TID, Says.NOT_SENT} else None,
        duplicate="608" in more,
    )


@pytest.mark.parametrize(("words", "status", "cell"), CASES)
def test_pair(words: str, status: Status, cell: str) -> None:
    """Each evidence does to each status what the table says, and nothing besides."""
    before = payment(status)
    decision = transition(before, evidence_of(words, before), RULES)
    expected = cell.replace(".", "").split()
    reviews = {Review(word[1:].replace("duplicate", "duplicate_refid")) for word in expected if word[0] == "+"}
    entered = [Status(word) for word in expected if word[0] != "+" and word not in {"recheck", "settled"}]
    assert decision.status is (entered[0] if entered else status)
    assert decision.reviews == reviews
    kept = before.recheck and not entered and "settled" not in expected
    assert decision.recheck is ("recheck" in expected or kept)
    assert (decision.failure is not None) is (decision.status is Status.FAILED)


@pytest.mark.parametrize(("words", "status", "cell"), CASES)
def test_pair_twice(words: str, status: Status, cell: str) -> None:
    """The same evidence a second time changes nothing more (rule 7)."""
    before = payment(status)
    evidence = evidence_of(words, before)
    once = take_in(before, evidence, at(600))
    assert replace(take_in(once, evidence, at(600)), doubt_from=once.doubt_from) == once


def test_table_is_whole() -> None:
    """Every status is a column, every meaning has a row, and no row stands twice."""
    assert set(STATUSES) == set(Status)
    assert {row[0].split()[1] for row in ROWS} == set(Says)
    assert len({row[0] for row in ROWS}) == len(ROWS)


CODES = st.sampled_from([None, "0", "00", "04", "682", "words", *sorted(codes.KNOWN)])
MESSAGES = st.builds(
    Message,
    refid=st.sampled_from([None, REFID, "another"]),
    statusid=CODES,
    retcode=CODES,
    success=st.sampled_from([None, True, False]),
    ambiguous=st.booleans(),
)


@settings(max_examples=500, database=None, deadline=None)
@given(MESSAGES | st.none(), st.booleans())
def test_nothing_else_occurs(message: Message | None, hint: bool) -> None:  # noqa: FBT001 - Hypothesis names it
    """Whatever K-Pay's codes make of a message is a row of the table."""
    rows = {(source, says, "hint" in more) for source, says, *more in (row[0].split() for row in ROWS)}
    for evidence in (
        meaning.of_pay_reply(message, REFID),
        meaning.of_checkstatus(message, REFID, at(0)),
        meaning.of_postback(message, hint=hint),
    ):
        assert (evidence.source, evidence.says, evidence.hint) in rows


@pytest.mark.parametrize("status", [Status.CREATED, Status.PENDING, Status.EXPIRED])
def test_failure_is_what_k_pay_said(status: Status) -> None:
    """A payment that fails takes over the failure that the evidence names."""
    evidence = Evidence(Source.CHECKSTATUS, Says.NOT_PAID, asked_at=at(500), failure=DECLINED)
    assert transition(payment(status), evidence, RULES).failure == DECLINED


def test_failure_keeps_its_first_reason() -> None:
    """A failed payment keeps the failure that the caller was told."""
    evidence = Evidence(Source.CHECKSTATUS, Says.NOT_PAID, asked_at=at(500), failure=REFUSAL)
    assert transition(payment(Status.FAILED), evidence, RULES).failure == DECLINED


@pytest.mark.parametrize(("retcode", "expected"), [(None, "611"), ("608", "608")], ids=["no-refusal", "after-608"])
def test_not_received(retcode: str | None, expected: str) -> None:
    """A 611 that is believed fails the payment as not received, with the refusal before it where there was one."""
    evidence = Evidence(
        Source.CHECKSTATUS, Says.NOT_FOUND, asked_at=at(150), statusid="611", statusdesc="Transaction not found"
    )
    failure = transition(payment(Status.CREATED, retcode=retcode), evidence, RULES).failure
    assert failure == Failure(FailureCode.NOT_RECEIVED, "Transaction not found", expected)
    assert failure.retryable


@pytest.mark.parametrize(
    ("asked", "status"),
    [(149.999, Status.CREATED), (150, Status.FAILED), (None, Status.CREATED)],
    ids=["before-grace-ends", "when-grace-ends", "time-of-question-unknown"],
)
def test_grace_counts_from_the_question(asked: float | None, status: Status) -> None:
    """A 611 counts by when the question was put, not by when the answer came (rule 3)."""
    evidence = Evidence(Source.CHECKSTATUS, Says.NOT_FOUND, asked_at=None if asked is None else at(asked))
    assert transition(payment(Status.CREATED), evidence, RULES).status is status


def test_early_611_is_no_forgetting() -> None:
    """K-Pay that does not know a pending payment yet, by an old question, has forgotten nothing."""
    evidence = Evidence(Source.CHECKSTATUS, Says.NOT_FOUND, asked_at=at(149))
    assert not transition(payment(Status.PENDING), evidence, RULES).reviews


@pytest.mark.parametrize("asked", [FINAL_AT - 1, FINAL_AT], ids=["before", "at-the-same-time"])
@pytest.mark.parametrize("says", [Says.PENDING, Says.NOT_FOUND])
@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_overtaken_answer(status: Status, says: Says, asked: float) -> None:
    """A "not yet" whose question was put before the final word tells nothing, but its tid is still K-Pay's."""
    before = payment(status, tid=None)
    decision = transition(before, Evidence(Source.CHECKSTATUS, says, asked_at=at(asked), tid="A1"), RULES)
    assert (decision.status, decision.failure, decision.recheck) == (status, before.failure, before.recheck)
    assert not decision.reviews
    assert decision.tid == "A1"


@pytest.mark.parametrize("status", [Status.FAILED, Status.EXPIRED])
def test_late_success(status: Status) -> None:
    """A failed or expired payment that K-Pay then calls paid has succeeded; nothing is left of the failure (rule 5)."""
    evidence = Evidence(Source.CHECKSTATUS, Says.PAID, asked_at=at(100), momtransactionid="M1")
    decision = transition(payment(status), evidence, RULES)
    assert (decision.status, decision.failure, decision.recheck) == (Status.SUCCEEDED, None, False)
    assert (Review.LATE_SUCCESS in decision.reviews) is (status is Status.FAILED)


def test_alive_after_failure_is_looked_at_again() -> None:
    """A failed payment that K-Pay still has open is looked at once more, also where no look was to come."""
    evidence = Evidence(Source.CHECKSTATUS, Says.PENDING, asked_at=at(500))
    decision = transition(payment(Status.FAILED, recheck=False), evidence, RULES)
    assert (decision.status, decision.recheck) == (Status.FAILED, True)


SAYS = st.sampled_from(list(Says))
IDS = st.sampled_from([None, "1", "2"])
EVIDENCE = st.builds(
    Evidence,
    st.sampled_from(list(Source)),
    SAYS,
    hint=st.booleans(),
    asked_at=st.sampled_from([None, at(100), at(500)]),
    tid=IDS,
    momtransactionid=IDS,
    failure=st.sampled_from([None, DECLINED]),
    duplicate=st.booleans(),
)


@settings(max_examples=500, database=None, deadline=None)
@given(st.sampled_from(list(Status)), EVIDENCE, IDS, IDS)
def test_any_pair(status: Status, evidence: Evidence, tid: str | None, momtransactionid: str | None) -> None:
    """Also of pairs that cannot occur: total, success is never left, and never entered on anything but "paid"."""
    before = payment(status, tid=tid, momtransactionid=momtransactionid)
    decision = transition(before, evidence, RULES)
    if status is Status.SUCCEEDED:
        assert decision.status is Status.SUCCEEDED
    elif decision.status is Status.SUCCEEDED:
        assert evidence.says is Says.PAID
        assert not evidence.hint
    assert status in OPEN or decision.status not in OPEN
    assert tid in (None, decision.tid)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("says", list(Says))
def test_what_surely_changes_nothing_does_not(status: Status, says: Says) -> None:
    """The cheap look at a postback never overlooks what `transition` would have done."""
    some, flags = (None, "1", "2"), (False, True)
    for hint, duplicate, tid, ours, momtransactionid, known in product(flags, flags, some, some, some, some):
        said = Evidence(Source.POSTBACK, says, hint=hint, tid=tid, momtransactionid=momtransactionid, failure=DECLINED)
        said = replace(said, duplicate=duplicate)
        if changes_nothing(status, ours, said):
            before = payment(status, tid=ours, momtransactionid=known)
            decision = transition(before, said, RULES)
            assert not decision.reviews
            assert (decision.status, decision.failure, decision.recheck) == (status, before.failure, before.recheck)
            assert (decision.tid, decision.momtransactionid) == (ours, known)


@pytest.mark.parametrize("status", list(Status))
def test_an_ordinary_postback_surely_changes_nothing(status: Status) -> None:
    """A hint that K-Pay was paid is seen to at once, whatever the status; one of failure not after a success."""
    paid = Evidence(Source.POSTBACK, Says.PAID, hint=True, tid="A1", momtransactionid="1")
    assert changes_nothing(status, "A1", paid)
    assert not changes_nothing(status, "A2", paid)
    assert not changes_nothing(status, "A1", replace(paid, hint=False))
    failed = Evidence(Source.POSTBACK, Says.NOT_PAID, hint=True, tid="A1")
    assert changes_nothing(status, "A1", failed) is (status is not Status.SUCCEEDED)
