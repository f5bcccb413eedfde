"""The breaker: when calls are held back, when one is let through, when all are again."""

import pytest

from app.breaker import FAILURES, LONGEST_PAUSE, Breaker

NOW = 1_000.0


def opened() -> Breaker:
    """Return a breaker that a refusal of ourselves has just opened."""
    breaker = Breaker()
    breaker.failed(NOW, "refused", at_once=True)
    return breaker


def test_closed() -> None:
    """As long as K-Pay answers, all calls go out."""
    breaker = Breaker()
    breaker.begun()
    breaker.succeeded()
    assert breaker.room(NOW, 16) == 16
    assert not breaker.is_open


def test_opens_after_failures_in_a_row() -> None:
    """One failure less than the limit holds nothing back; the next does, and says why."""
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(NOW, "silence")
    assert breaker.room(NOW, 16) == 16
    breaker.failed(NOW, "silence")
    assert breaker.is_open
    assert breaker.room(NOW, 16) == 0
    assert breaker.reason == "silence"


def test_an_answer_between_failures_counts_anew() -> None:
    """Failures that are not in a row hold nothing back."""
    breaker = Breaker()
    for _ in range(3 * FAILURES):
        breaker.failed(NOW, "silence")
        breaker.succeeded()
    assert not breaker.is_open


def test_fault_30_a_refusal_of_ourselves_opens_the_breaker_at_once() -> None:
    """A wrong password is not tried out on every payment."""
    assert opened().room(NOW, 16) == 0


def test_fault_31_one_probe_goes_out_after_the_pause() -> None:
    """When the pause is over one call goes out, and no other until it has ended."""
    breaker = opened()
    later = breaker.until
    assert breaker.room(later - 0.01, 16) == 0
    assert breaker.room(later, 16) == 1
    assert breaker.room(later, 0) == 0
    breaker.begun()
    assert breaker.room(later, 16) == 0


def test_probe_that_succeeds_closes() -> None:
    """After a good probe all calls go out, and the next failure is the first."""
    breaker = opened()
    breaker.begun()
    breaker.succeeded()
    assert (breaker.is_open, breaker.reason, breaker.room(NOW, 16)) == (False, "", 16)
    breaker.failed(NOW, "silence")
    assert not breaker.is_open


def test_fault_31_pauses_grow_to_a_limit() -> None:
    """Each probe that fails doubles the pause, give or take a tenth, up to the longest."""
    breaker = opened()
    pauses = []
    for _ in range(10):
        now = breaker.until
        assert breaker.room(now, 16) == 1
        breaker.begun()
        breaker.failed(now, "silence")
        pauses.append(breaker.until - now)
    assert pauses == [pytest.approx(min(2.0**n, LONGEST_PAUSE), rel=0.11) for n in range(1, 11)]


def test_stragglers_do_not_lengthen_the_pause() -> None:
    """Calls that were under way when it opened fail too, and change nothing."""
    breaker = opened()
    until = breaker.until
    for _ in range(16):
        breaker.failed(NOW + 0.1, "silence")
    assert (breaker.until, breaker.pause) == (until, 1.0)


def test_fault_31_a_breaker_lets_out_few_of_a_backlog_while_kpay_is_down() -> None:
    """With hundreds of checks due all the time, an hour of a K-Pay that is down costs about one call a minute."""
    breaker, now, calls = Breaker(), NOW, 0
    while now < NOW + 3_600:
        for _ in range(breaker.room(now, 16)):
            breaker.begun()
            breaker.failed(now, "silence")
            calls += 1
        now += 0.5
    assert 60 < calls < 16 + 90
    breaker.succeeded()
    assert breaker.room(now, 16) == 16
