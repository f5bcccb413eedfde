"""When K-Pay is asked next: schedule, wake-ups, grace, expiry and the looks after it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import OPEN, Evidence, Says, Snapshot, Source, Status, agrees_with, next_check

from .support import EXPIRES, RULES, at, payment, take_in

WEEK = 7 * 86_400.0
STEADY = 1.0


def delays(start: Snapshot, now: float, number: int, jitter: float = STEADY) -> list[float | None]:
    """Return the next delays of a payment about which nothing new is learnt."""
    found: list[float | None] = []
    for _ in range(number):
        seconds, start = next_check(start, RULES, at(now), jitter)
        found.append(seconds)
        now += seconds or 0
    return found


def test_schedule_and_its_last_delay_for_ever() -> None:
    """A pending payment is asked about by the schedule, whose last delay repeats."""
    assert delays(payment(Status.PENDING), 200, 5) == [10, 20, 30, 30, 30]


@pytest.mark.parametrize("jitter", [0.9, 1.1])
@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED, Status.EXPIRED])
def test_jitter_is_a_factor(status: Status, jitter: float) -> None:
    """What is drawn by the caller multiplies the delay."""
    steady, _ = next_check(payment(status), RULES, at(500), STEADY)
    jittered, _ = next_check(payment(status), RULES, at(500), jitter)
    assert steady is not None
    assert jittered == pytest.approx(steady * jitter)


def test_wake_asks_again_soon_and_then_returns_to_the_schedule() -> None:
    """A postback's rechecks come first, then the schedule goes on where it was."""
    woken = payment(Status.PENDING, wake_step=0, check_step=1)
    assert delays(woken, 200, 5) == [2, 5, 15, 20, 30]


def test_wake_step_is_forgotten_when_used_up() -> None:
    """After the last recheck nothing of the wake-up is left."""
    _, rested = next_check(payment(Status.PENDING, wake_step=3), RULES, at(200), STEADY)
    assert rested.wake_step is None


def test_woken_failure_is_rechecked_and_left_alone() -> None:
    """A postback about a failed payment brings its rechecks, no schedule."""
    assert delays(payment(Status.FAILED, wake_step=0, recheck=False), 500, 5) == [2, 5, 15, None, None]


def test_success_ends_the_asking() -> None:
    """A succeeded payment is not asked about, whatever woke it."""
    assert delays(payment(Status.SUCCEEDED, wake_step=0), 500, 2) == [None, None]


def test_failure_with_one_more_look() -> None:
    """After a 606 or 607 K-Pay is asked once more when the grace is over; without one, never."""
    assert delays(payment(Status.FAILED, recheck=True), 500, 1) == [RULES.unknown_grace]
    assert delays(payment(Status.FAILED, recheck=False), 500, 1) == [None]


def test_fault_27_a_check_falls_on_the_end_of_the_grace() -> None:
    """The first 611 that can be believed is asked for as soon as it can be, then the schedule goes on."""
    unknown = payment(Status.CREATED, check_step=2)
    assert delays(unknown, 125, 3) == [25, 30, 30]


def test_grace_shortens_only_what_passes_it() -> None:
    """Within the grace the schedule stands as long as it does not lead past its end."""
    assert delays(payment(Status.CREATED), 40, 3) == [10, 20, 30]


def test_pending_has_no_grace() -> None:
    """What K-Pay has accepted is asked about by the schedule alone."""
    assert delays(payment(Status.PENDING, check_step=2), 125, 1) == [30]


@pytest.mark.parametrize("wake_step", [None, 2], ids=["schedule", "woken"])
@pytest.mark.parametrize("status", sorted(OPEN))
def test_last_check_falls_on_expiry(status: Status, wake_step: int | None) -> None:
    """The last question before expiry is put at expiry itself, not after it."""
    late = payment(status, check_step=9, wake_step=wake_step)
    assert next_check(late, RULES, at(EXPIRES - 4), STEADY)[0] == 4


def test_expired_is_looked_at_daily_for_a_week() -> None:
    """An expired payment still accepts a late truth: seven daily looks, then none."""
    assert delays(payment(Status.EXPIRED), EXPIRES, 9) == [86_400] * 7 + [None, None]


@pytest.mark.parametrize(("after", "asked"), [(WEEK - 1, True), (WEEK, False)], ids=["within", "after"])
@pytest.mark.parametrize("wake_step", [None, 0], ids=["rested", "woken"])
@pytest.mark.parametrize("status", [Status.FAILED, Status.EXPIRED])
def test_a_week_after_expiry_is_the_end(status: Status, wake_step: int | None, after: float, asked: bool) -> None:  # noqa: FBT001 - a case
    """A week after expiry the last looks end, also those of a failure that K-Pay keeps open."""
    seconds, rested = next_check(payment(status, wake_step=wake_step), RULES, at(EXPIRES + after), STEADY)
    assert (seconds is not None) is asked
    assert asked or rested.wake_step is None


@pytest.mark.parametrize(
    ("wake_step", "says", "looks"),
    [
        (2, Says.NOT_FOUND, True),
        (2, Says.QUESTION_REFUSED, True),
        (2, Says.NOT_PAID, False),
        (None, Says.NOT_FOUND, False),
    ],
    ids=["not found, though a postback says paid", "nobody answers", "not paid", "not found"],
)
def test_a_failure_that_a_postback_denies_is_looked_at_until_kpay_says(
    wake_step: int | None,
    says: Says,
    looks: bool,  # noqa: FBT001 - a case
) -> None:
    """After the rechecks the looking goes on by the schedule, and ends with K-Pay's word about the payment only."""
    asked = Evidence(Source.CHECKSTATUS, says, asked_at=at(600))
    after = take_in(payment(Status.FAILED, wake_step=wake_step), asked, at(600))
    seconds, _ = next_check(
        replace(after, wake_step=wake_step and len(RULES.postback_rechecks)), RULES, at(600), STEADY
    )
    assert (seconds is not None) is looks


@settings(max_examples=300, database=None, deadline=None)
@given(
    st.sampled_from(sorted(OPEN)),
    st.floats(0, EXPIRES + 2 * WEEK, exclude_max=True),
    st.floats(0.9, 1.1),
    st.integers(0, 50),
    st.none() | st.integers(0, 5),
)
def test_open_is_never_without_a_check(
    status: Status, now: float, jitter: float, check_step: int, wake_step: int | None
) -> None:
    """An open payment always has a next check, later than now and, before its expiry, never past that."""
    asked = payment(status, check_step=check_step, wake_step=wake_step)
    seconds, moved = next_check(asked, RULES, at(now), jitter)
    assert seconds is not None
    assert seconds > 0
    assert at(now) >= asked.expires_at or at(now + seconds) <= asked.expires_at
    assert moved == replace(asked, check_step=moved.check_step, wake_step=moved.wake_step)


@pytest.mark.parametrize(
    ("says", "status"),
    [(Says.PAID, Status.SUCCEEDED), (Says.NOT_PAID, Status.FAILED), (Says.PENDING, None), (Says.NOTHING, None)],
)
def test_postback_that_tells_nothing_new(says: Says, status: Status | None) -> None:
    """A postback leaves nothing to ask about only where it repeats a final word."""
    assert agrees_with(says) is status


@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED])
def test_steps_do_not_grow_for_ever(status: Status) -> None:
    """However often a payment is looked at, its step stays within the schedule: the column is a small one."""
    asked = payment(status, check_step=len(RULES.check_schedule))
    assert next_check(asked, RULES, at(0), STEADY)[1].check_step == len(RULES.check_schedule)
