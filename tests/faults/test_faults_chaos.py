"""A short chaos run: what `bench.chaos` does for minutes, for as long as a test may take."""

import pytest

from bench.chaos import run, schedule

SEED = 18
SECONDS = 22


@pytest.mark.timeout(300)
def test_fault_38_services_and_postgres_killed_and_links_broken_under_load() -> None:
    """While services and PostgreSQL die and links break under load, nothing that anybody was told turns out untrue.

    The seed is chosen so that PostgreSQL and then a service are killed first; `bench.chaos` runs any seed for any time.
    """
    report = run(SEED, SECONDS)
    print("\n".join(report.lines()))  # noqa: T201 - shown where it fails
    assert report.violations == []
    assert report.converged_in is not None
    # A run in which little happened would show little.
    assert report.answers["start 201"] > 10
    assert report.steps["kill PostgreSQL"] > 0
    assert report.steps["kill a"] + report.steps["kill b"] > 0


def test_a_seed_is_a_schedule() -> None:
    """The same seed makes the same schedule, another one another; nothing lasts beyond the end."""
    assert schedule(SEED, SECONDS) == schedule(SEED, SECONDS) != schedule(SEED + 1, SECONDS)
    assert all(step.at + step.seconds <= SECONDS for lane in schedule(SEED, SECONDS) for step in lane)
