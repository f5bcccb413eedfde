"""K-Pay's own ids: `tid` and `momtransactionid`, bound once, and what does not fit them (rule 9)."""

import pytest

from app.domain import Evidence, Review, Says, Source, Status, transition

from .support import RULES, at, payment


def said(says: Says, *, hint: bool = False, tid: str | None = None, momtransactionid: str | None = None) -> Evidence:
    """Return what checkstatus, or a postback that is a hint, says of the ids."""
    source = Source.POSTBACK if hint else Source.CHECKSTATUS
    return Evidence(source, says, hint=hint, asked_at=at(500), tid=tid, momtransactionid=momtransactionid)


@pytest.mark.parametrize("says", [Says.PENDING, Says.PAID, Says.NOT_PAID])
@pytest.mark.parametrize("status", list(Status))
def test_tid_is_bound_by_the_first_answer(status: Status, says: Says) -> None:
    """The first answer that carries a tid binds it, in whatever status."""
    decision = transition(payment(status, tid=None), said(says, tid="A7"), RULES)
    assert decision.tid == "A7"
    assert Review.TID_MISMATCH not in decision.reviews


@pytest.mark.parametrize("hint", [True, False], ids=["postback", "checkstatus"])
@pytest.mark.parametrize("status", list(Status))
def test_another_tid(status: Status, hint: bool) -> None:  # noqa: FBT001 - a case
    """Evidence with another tid needs review and leaves the tid that is bound."""
    decision = transition(payment(status, tid="A1"), said(Says.PAID, hint=hint, tid="A2", momtransactionid="M1"), RULES)
    assert decision.tid == "A1"
    assert Review.TID_MISMATCH in decision.reviews


def test_the_same_tid() -> None:
    """Evidence with the tid that is bound, or with none, is no mismatch."""
    for tid in ("A1", None):
        decision = transition(payment(Status.PENDING), said(Says.PENDING, tid=tid), RULES)
        assert (decision.tid, decision.reviews) == ("A1", frozenset())


@pytest.mark.parametrize("says", [Says.PENDING, Says.PAID, Says.NOT_PAID, Says.NOTHING])
def test_hint_binds_nothing(says: Says) -> None:
    """Neither a tid nor a momtransactionid is learnt from a postback that may be forged."""
    decision = transition(payment(Status.CREATED), said(says, hint=True, tid="A6", momtransactionid="M6"), RULES)
    assert (decision.status, decision.tid, decision.momtransactionid) == (Status.CREATED, None, None)


def test_momtransactionid_is_bound_once() -> None:
    """The first confirmed momtransactionid stays; a second "paid" with another one needs review."""
    first = transition(payment(Status.PENDING), said(Says.PAID, momtransactionid="M1"), RULES)
    assert (first.momtransactionid, first.reviews) == ("M1", frozenset())
    second = transition(payment(Status.SUCCEEDED), said(Says.PAID, momtransactionid="M2"), RULES)
    assert second.momtransactionid == "M1"
    assert second.reviews == {Review.MOMTRANSACTIONID_CHANGED}


def test_forged_momtransactionid_changes_nothing() -> None:
    """A hint with another momtransactionid is no change of it: K-Pay did not say so over our own call."""
    decision = transition(payment(Status.SUCCEEDED), said(Says.PAID, hint=True, momtransactionid="M2"), RULES)
    assert (decision.momtransactionid, decision.reviews) == ("M1", frozenset())


@pytest.mark.parametrize("hint", [True, False], ids=["postback", "checkstatus"])
def test_paid_without_momtransactionid(hint: bool) -> None:  # noqa: FBT001 - a case
    """01 without momtransactionid needs review, and what K-Pay confirms has succeeded all the same."""
    decision = transition(payment(Status.PENDING), said(Says.PAID, hint=hint), RULES)
    assert decision.status is (Status.PENDING if hint else Status.SUCCEEDED)
    assert decision.reviews == {Review.MOMTRANSACTIONID_MISSING}


def test_repeated_paid_may_leave_momtransactionid_out() -> None:
    """01 without momtransactionid is fine where the payment has one."""
    assert not transition(payment(Status.SUCCEEDED), said(Says.PAID), RULES).reviews


@pytest.mark.parametrize("hint", [True, False], ids=["postback", "checkstatus"])
def test_not_paid_with_momtransactionid(hint: bool) -> None:  # noqa: FBT001 - a case
    """02 with a momtransactionid needs review, and what K-Pay confirms has failed all the same."""
    decision = transition(payment(Status.PENDING), said(Says.NOT_PAID, hint=hint, momtransactionid="M1"), RULES)
    assert decision.status is (Status.PENDING if hint else Status.FAILED)
    assert decision.reviews == {Review.MOMTRANSACTIONID_UNEXPECTED}


@pytest.mark.parametrize("status", list(Status))
def test_608_needs_review_in_every_status(status: Status) -> None:
    """A first request that K-Pay calls a repetition may have met another's payment: review, and no failure."""
    evidence = Evidence(Source.GATEWAY_REPLY, Says.IN_DOUBT, duplicate=True)
    decision = transition(payment(status), evidence, RULES)
    assert decision.status is status
    assert decision.reviews == {Review.DUPLICATE_REFID}


def test_a_reason_is_given_once() -> None:
    """A reason that the payment has already is not among the new ones."""
    known = frozenset({Review.CONTRADICTION})
    evidence = said(Says.NOT_PAID, tid="A2")
    assert transition(payment(Status.SUCCEEDED, reviews=known), evidence, RULES).reviews == {Review.TID_MISMATCH}
