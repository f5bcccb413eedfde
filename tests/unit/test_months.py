"""Months: which are made, and which are over."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app import months

MONTHS = st.dates(date(2000, 1, 1), date(2100, 1, 1)).map(lambda day: day.replace(day=1))


@given(MONTHS)
def test_a_month_follows_another_without_a_gap(month: date) -> None:
    """The month after begins where this one ends."""
    after = months.following(month)
    assert after.day == 1
    assert (after - timedelta(days=1)).replace(day=1) == month


@given(MONTHS, st.integers(1, 24), st.sets(st.integers(0, 30)))
def test_lacking_months_are_those_to_come_that_are_not_there(now: date, ahead: int, made: set[int]) -> None:
    """Whatever is there, holes and all, the months after this one are there afterwards; this one is left alone."""
    every = _from(now, 31)
    there = [every[number] for number in made]
    lacking = months.lacking(there, now + timedelta(days=14), ahead)
    assert set(lacking) == set(every[1 : ahead + 1]) - set(there)
    assert list(lacking) == sorted(lacking)
    assert not months.lacking([*there, *lacking], now, ahead)


def test_names_tell_what_is_a_partition_and_its_month() -> None:
    """Nothing else is taken for one: the check of the migrations leaves partitions out, and months are emptied."""
    names = ["bodies_rest", "bodies_2027_01", "bodies_before", "bodies_2026_12"]
    assert months.among(names) == [date(2026, 12, 1), date(2027, 1, 1)]
    assert months.name_of(date(2026, 12, 1)) == "bodies_2026_12"
    assert all(map(months.is_partition, names))
    for other in ("bodies", "events", "payments_2026_12", "bodies_2026_12_pkey", "my_bodies_rest", None):
        assert not months.is_partition(other)


def test_a_month_is_over_when_its_last_day_is() -> None:
    """The month that `before` lies in is not over; that of a payment made a second before its end was."""
    there = [date(2026, 11, 1), date(2026, 12, 1)]
    assert months.over(there, date(2026, 12, 31)) == [date(2026, 11, 1)]
    assert months.over(there, date(2027, 1, 1)) == there
    assert not months.over(there, date(2026, 11, 30))


def _from(month: date, count: int) -> list[date]:
    found = []
    for _ in range(count):
        found.append(month)
        month = months.following(month)
    return found
