"""Histories made by chance: an honest K-Pay that lags and a network that lies play against the rules of truth.

K-Pay's truth of one payment moves (`gateway.MOVES`); its answers may be older than the truth, never ahead of it. The
network loses, delays and reorders answers, and brings forged, repeated and garbled postbacks, which are hints.

Each invariant was tried against a `transition` that was broken on purpose, in a copy:

- `no_false_success` falls when a hint decides, when "pending" counts as paid.
- `success_is_never_left` falls without the guard on `succeeded` in `_status`, or when time runs out for every status.
- `final_stays_final` (and its like in `take`) falls when a failed or expired payment becomes pending again.
- `failure_has_a_ground` falls when a 611 is believed within the grace, of a pending payment, or when a question
  that brought no answer counts as a 611.
- `ids_are_k_pays_own` falls when a hint binds a tid, or a forged one replaces the first.
- `a_second_time_changes_nothing` (in `take`) falls when overtaken answers count, or known reasons are given again.
- `no_lost_success` falls when "paid" is not accepted after `failed`, or not after `expired`.
- `open_is_asked_about` falls when the schedule ends, or a check leads past the expiry.
"""

from dataclasses import replace
from datetime import datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.domain import FINAL, OPEN, Evidence, FailureCode, Says, Status, grace_end, next_check, transition
from app.kpay import meaning
from app.kpay.wire import read

from .gateway import MOMTRANSACTIONID, MOVES, TID, Gateway, Truth, refusal
from .support import EXPIRES, REFID, RULES, at, payment, take_in

TRUE_WORDS = b'{"tid":"A7","refid":"R1","momtransactionid":"616730887","statusid":"01","statusdesc":"paid"}'
FORGED = st.builds(
    b'{"tid":"%s","refid":"R1","momtransactionid":"%s","statusid":"%s"}'.__mod__,
    st.tuples(
        st.sampled_from([b"", TID.encode(), b"X1"]),
        st.sampled_from([b"", MOMTRANSACTIONID.encode(), b"666"]),
        st.sampled_from([b"01", b"02", b"03", b"682", b"611", b"600", b"words"]),
    ),
)
GARBLED = st.integers(0, len(TRUE_WORDS)).map(lambda cut: TRUE_WORDS[:cut]) | st.binary(max_size=40)
FATES = ["answered", "answer_lost", "608", "paid_at_once", "lost", "605", "607", "not_sent"]
SOON = st.sampled_from([0.0, 1.0, 30.0, 119.0, 121.0, 3_600.0])


class History(RuleBasedStateMachine):
    """One payment, from its request to the day when all faults have stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway()
        self.now = 0.0
        self.payment = payment(Status.CREATED)
        self.under_way: list[tuple[bytes, datetime | None]] = []
        self.seen: list[Status] = [Status.CREATED]
        self.grounds: set[FailureCode] = set()

    @property
    def clock(self) -> datetime:
        """The database's time."""
        return at(self.now)

    def take(self, evidence: Evidence) -> None:
        """Take evidence in, twice, and note on what grounds the payment may now have failed."""
        before = self.payment
        asked = evidence.asked_at
        if evidence.failure and not evidence.hint:
            self.grounds.add(evidence.failure.code)
        if evidence.says is Says.NOT_FOUND and asked and asked >= grace_end(before, RULES):
            self.grounds |= {FailureCode.NOT_RECEIVED} if before.status is Status.CREATED else set()
        decision = transition(before, evidence, RULES)
        assert before.status in OPEN or decision.status in FINAL, "final stays final"
        self.payment = take_in(before, evidence, self.clock)
        self.seen.append(self.payment.status)
        again = take_in(self.payment, evidence, self.clock)
        assert replace(again, doubt_from=self.payment.doubt_from) == self.payment, "a second time changes nothing"
        assert not transition(self.payment, evidence, RULES).reviews, "a second time changes nothing"

    @initialize(
        fate=st.sampled_from(FATES),
        seconds=st.floats(0, 30),
    )
    def request(self, fate: str, seconds: float) -> None:
        """The payment request arrives and is answered or not, or never arrives."""
        self.now = seconds
        if fate in {"answered", "paid_at_once", "answer_lost", "608"}:
            self.gateway.move(Truth.PAID if fate == "paid_at_once" else Truth.PENDING)
        if fate in {"answered", "paid_at_once"}:
            self.under_way.append((self.gateway.reply(), None))
        elif fate.isdigit():
            self.under_way.append((refusal(fate), None))
        elif fate == "not_sent":
            self.take(meaning.not_sent("no connection"))
        else:
            self.take(meaning.in_doubt("no answer"))

    @precondition(lambda self: self.gateway.truth is Truth.UNKNOWN and self.payment.status is Status.CREATED)
    @rule()
    def request_arrives_late(self) -> None:
        """A request that was given up for lost reaches K-Pay after all."""
        self.gateway.move(Truth.PENDING)

    @precondition(lambda self: self.gateway.truth in (Truth.PENDING, Truth.FAILED))
    @rule(moves=st.sampled_from([(Truth.PAID,), (Truth.FAILED,), (Truth.FAILED, Truth.PAID)]))
    def truth_moves(self, moves: tuple[Truth, ...]) -> None:
        """The payer pays, or the bank says no, or finds out later that the money has moved."""
        for truth in moves:
            if truth in MOVES[self.gateway.truth]:
                self.gateway.move(truth)

    @rule(lag=st.integers(0, 3))
    def ask(self, lag: int) -> None:
        """A checkstatus is put and answered; the answer is still under way and may be behind the truth."""
        self.under_way.append((self.gateway.status(lag), self.clock))

    @rule(lags=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def ask_and_hear(self, lags: list[int]) -> None:
        """Checks are put and answered at once, some by a part of K-Pay that is behind."""
        for lag in lags:
            self.now += 1
            self.take(meaning.of_checkstatus(read(self.gateway.status(lag)), REFID, self.clock))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def answer_arrives(self, data: st.DataObject) -> None:
        """Any of the answers that are under way arrives, in whatever order."""
        body, asked_at = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        message = read(body)
        if asked_at is None:
            self.take(meaning.of_pay_reply(message, REFID))
        else:
            self.take(meaning.of_checkstatus(message, REFID, asked_at))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), left=st.integers(0, 60))
    def answer_is_cut(self, data: st.DataObject, left: int) -> None:
        """Any of the answers that are under way is lost (nothing is left of it) or arrives cut."""
        body, asked_at = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        message = read(body[:left])
        if asked_at is None:
            self.take(meaning.of_pay_reply(message, REFID))
        else:
            self.take(meaning.of_checkstatus(message, REFID, asked_at))

    @rule(body=FORGED | GARBLED | st.just(TRUE_WORDS), times=st.integers(1, 3))
    def postback(self, body: bytes, times: int) -> None:
        """A postback arrives, once or more often: forged, garbled, or K-Pay's own of another time."""
        for _ in range(times):
            self.take(meaning.of_postback(read(body), hint=True))

    @rule(seconds=SOON)
    def time_passes(self, seconds: float) -> None:
        """Time passes; nobody looks."""
        self.now += seconds

    @rule(before=st.sampled_from([0.0, 5.0]))
    def time_runs_out(self, before: float) -> None:
        """Nothing is heard until the payment has expired or is about to; then somebody looks."""
        self.now = max(self.now, EXPIRES - before)
        self.take(meaning.question_failed("no connection", self.clock))

    @invariant()
    def no_false_success(self) -> None:
        """A payment has succeeded only if it was paid."""
        assert self.payment.status is not Status.SUCCEEDED or Truth.PAID in self.gateway.was

    @invariant()
    def success_is_never_left(self) -> None:
        """What has succeeded once stays so."""
        assert Status.SUCCEEDED not in self.seen or self.payment.status is Status.SUCCEEDED

    @invariant()
    def final_stays_final(self) -> None:
        """What is final never opens again; what has failed does not expire."""
        final = [status for status in self.seen if status in FINAL]
        assert not final or self.payment.status in FINAL
        assert Status.FAILED not in final or Status.EXPIRED not in final[final.index(Status.FAILED) :]

    @invariant()
    def failure_has_a_ground(self) -> None:
        """A payment fails only by K-Pay's "no", a refusal, or a 611 that was asked for after the grace."""
        failure = self.payment.failure
        assert (failure is not None) is (self.payment.status is Status.FAILED)
        assert failure is None or failure.code in self.grounds

    @invariant()
    def ids_are_k_pays_own(self) -> None:
        """No forged id is ever bound."""
        assert self.payment.tid in (None, TID)
        assert self.payment.momtransactionid in (None, MOMTRANSACTIONID)

    @invariant()
    def open_is_asked_about(self) -> None:
        """An open payment has a next check, never past its expiry."""
        if self.payment.status in OPEN and self.now < EXPIRES:
            seconds, _ = next_check(replace(self.payment, check_step=len(self.seen)), RULES, self.clock, 1.1)
            assert seconds is not None
            assert at(self.now + seconds) <= self.payment.expires_at

    def teardown(self) -> None:
        """When the faults stop and K-Pay is asked afresh, what was paid has succeeded and nothing stays in doubt."""
        self.now = max(self.now, (grace_end(self.payment, RULES) - at(0)).total_seconds()) + 1
        self.take(meaning.of_checkstatus(read(self.gateway.status()), REFID, self.clock))
        assert self.gateway.truth is not Truth.PAID or self.payment.status is Status.SUCCEEDED, "no lost success"
        assert self.gateway.truth is Truth.PENDING or self.payment.status in FINAL, "nothing stays in doubt"
        self.success_is_never_left()
        self.no_false_success()


History.TestCase.settings = settings(
    max_examples=400, stateful_step_count=25, database=None, deadline=None, report_multiple_bugs=False
)
TestHistory = History.TestCase
