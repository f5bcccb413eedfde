"""Months in the database: where rows go, what happens when months run out, what is given back, and the way there."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from alembic import command

from app import months
from app.database import open_database
from app.retention import Pruned, prune
from app.schema import _config, migrate
from tests.conftest import QUICK
from tests.support import Service, Simulator, eventually, query, run_command, run_service

_WHERE = """SELECT tableoid::regclass::text AS place FROM events WHERE refid = $1
            UNION SELECT tableoid::regclass::text FROM evidence WHERE refid = $1"""
_LATER = "UPDATE payments SET created_at = created_at + interval '70 days' WHERE refid = $1"
_DUE = "SELECT 1 FROM payments WHERE next_check_at IS NOT NULL"
IN_TEN_WEEKS = timedelta(weeks=10)


@pytest.fixture
def till(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service on a database of its own."""
    with run_service(tmp_path_factory.mktemp("months"), new_database(), simulator, QUICK) as service:
        yield service


def _ask(service: Service, sql: str, *values: object) -> list[Any]:
    return [row[0] for row in query(service.database_url, sql, *values)]


def _places(service: Service, refid: str) -> set[str]:
    return set(_ask(service, _WHERE, refid))


def _month(service: Service, refid: str) -> date:
    return months.month_of(_ask(service, "SELECT created_at FROM payments WHERE refid = $1", refid)[0])


def _partitions(service: Service, refid: str) -> set[str]:
    return {months.name_of(table, _month(service, refid)) for table in months.TABLES}


def _paid(service: Service) -> str:
    refid: str = service.start()["refid"]
    assert service.read(refid, wait=15)["status"] == "succeeded"
    # K-Pay's postback may come after the check that found it paid.
    eventually(lambda: "postback" in {event["source"] for event in service.events(refid)})
    return refid


def _prune(service: Service, older_than: timedelta) -> Pruned:
    async def run() -> Pruned:
        async with open_database(service.database_url, pool=1) as database:
            return await prune(database, older_than)

    return asyncio.run(run())


def test_all_of_a_payment_lies_in_its_month(till: Service) -> None:
    """A request, K-Pay's answers, a postback and the timeline of one payment lie in one partition of each table."""
    refid = _paid(till)
    assert _places(till, refid) == _partitions(till, refid)


def test_the_same_words_are_no_news_in_another_month(till: Service) -> None:
    """What comes months later goes to the payment's month, so that the key still knows it: by postback or by check."""
    refid = _paid(till)
    _ask(till, _LATER, refid)
    late = _partitions(till, refid)
    assert not late & _places(till, refid)
    kept = "SELECT source FROM evidence WHERE refid = $1 AND month = $2 ORDER BY source"
    for _ in range(2):
        assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
        assert till.http.post(f"/v1/payments/{refid}/check").status_code == 200
        assert _ask(till, kept, refid, _month(till, refid)) == ["checkstatus", "postback"]
    told = till.events(refid)
    assert late <= _places(till, refid)
    assert [event["source"] for event in told].count("postback") == 2
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))


def test_nothing_is_lost_when_months_run_out(till: Service) -> None:
    """Without a partition everything goes on, the doctor says so, and `kpayd prune` puts the rows where they belong."""
    old = _paid(till)
    parts = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass"
    for table in months.TABLES:
        for month in months.among(_ask(till, parts, table)):
            if month > _month(till, old):
                _ask(till, f"DROP TABLE {months.name_of(table, month)}")
    refid = _paid(till)
    _ask(till, _LATER, refid)
    assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
    assert {"events_rest", "evidence_rest"} <= _places(till, refid)
    before = till.events(refid)

    told = run_command(till.env, "doctor", "--json")
    assert [each["detail"] for each in json.loads(told.stdout) if not each["ok"]] == [
        f"not made from {months.following(_month(till, old)):%Y-%m} on: run kpayd migrate, and kpayd prune every month"
    ]
    assert run_command(till.env, "prune", "--older-than", "30").returncode == 0
    assert _partitions(till, refid) <= _places(till, refid)
    assert not {"events_rest", "evidence_rest"} & _places(till, refid)
    assert till.events(refid) == before
    assert run_command(till.env, "doctor").returncode == 0


def test_a_month_without_bodies_gives_its_space_back(till: Service) -> None:
    """The bodies of a month go with the last of them; timeline and payment stay, and what K-Pay says late is taken."""
    kept, refid = _paid(till), _paid(till)
    place = months.name_of("evidence", _month(till, refid))
    _ask(till, "UPDATE payments SET review_reasons = '{contradiction}' WHERE refid = $1", kept)
    eventually(lambda: not _ask(till, _DUE))
    told = till.events(refid)
    assert _prune(till, -IN_TEN_WEEKS) == Pruned(payments=1, strays=0, months=0)
    assert _ask(till, f"SELECT 1 FROM {place} WHERE body <> ''"), "one is under review"  # noqa: S608 - our own name

    _ask(till, "UPDATE payments SET review_reasons = '{}' WHERE refid = $1", kept)
    assert _prune(till, -IN_TEN_WEEKS) == Pruned(payments=1, strays=0, months=1)
    assert not _ask(till, f"SELECT 1 FROM {place}")  # noqa: S608 - our own name
    assert _prune(till, -IN_TEN_WEEKS) == Pruned(payments=0, strays=0, months=0)
    assert [event["seq"] for event in till.events(refid)] == [event["seq"] for event in told]
    assert till.postback(refid, statusid="01").json()["reply"] == "OK"
    assert till.read(refid)["status"] == "succeeded"


def test_a_month_that_is_not_over_keeps_what_it_has(till: Service) -> None:
    """Digests of payments that K-Pay may still speak of stay, though their bodies are gone."""
    refid = _paid(till)
    _ask(till, "UPDATE evidence SET body = ''")
    assert _prune(till, timedelta(days=30)).months == 0
    assert _ask(till, "SELECT 1 FROM evidence WHERE refid = $1", refid)


def test_who_reads_a_month_is_not_waited_for(till: Service) -> None:
    """A dump that holds the tables delays neither the pruning nor the service: the month is emptied another time."""
    _paid(till)
    eventually(lambda: not _ask(till, _DUE))

    async def while_read() -> Pruned:
        async with open_database(till.database_url, pool=2) as database, database.engine.connect() as reader:
            await reader.exec_driver_sql("SELECT 1 FROM evidence")
            return await asyncio.wait_for(prune(database, -IN_TEN_WEEKS), 10)

    assert asyncio.run(while_read()) == Pruned(payments=1, strays=0, months=0)
    assert _prune(till, -IN_TEN_WEEKS).months == 1


def test_there_and_back_again_with_rows(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows that lie in months are all there in the schema before, and those of the schema before in this one."""
    folder, url = tmp_path_factory.mktemp("rows"), new_database()
    with run_service(folder, url, simulator, QUICK) as service:
        refid = _paid(service)
        told = service.events(refid)
    counts = "SELECT (SELECT count(*) FROM events) AS events, (SELECT count(*) FROM evidence) AS evidence"
    before = query(url, counts)
    for _ in range(2):
        command.downgrade(_config(url), "0006")
        assert query(url, counts) == before
        migrate(url)
        assert query(url, counts) == before
    with run_service(folder, url, simulator, QUICK) as service:
        assert _places(service, refid) == {"events_before", "evidence_before"}
        seqs = _ask(service, "SELECT seq FROM events WHERE refid = $1 ORDER BY seq", refid)
        assert seqs == [event["seq"] for event in told]
        again = _paid(service)
        assert _places(service, again) == _partitions(service, again)
