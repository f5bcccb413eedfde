"""Months in the database: where rows go, what happens when months run out, what is given back, and the way there."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from alembic import command
from sqlalchemy import text

from app import months
from app.database import open_database
from app.retention import Pruned, prune
from app.schema import _config, migrate
from tests.conftest import QUICK
from tests.given import Given, Postgres
from tests.support import Service, Simulator, eventually, query, run_command, run_service

_WHERE = "SELECT DISTINCT tableoid::regclass::text FROM evidence WHERE refid = $1"
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


def _partition(service: Service, refid: str) -> str:
    return months.name_of(_month(service, refid))


def _paid(service: Service) -> str:
    refid: str = service.start()["refid"]
    assert service.read(refid, wait=15)["status"] == "succeeded"
    # K-Pay's postback may come after the check that found it paid.
    eventually(lambda: "postback" in {event["source"] for event in service.events(refid)})
    return refid


def _prune(service: Service, older_than: timedelta, *, dry_run: bool = False) -> Pruned:
    async def run() -> Pruned:
        async with open_database(service.database_url, pool=1) as database:
            return await prune(database, older_than, dry_run=dry_run)

    return asyncio.run(run())


def test_all_of_a_payment_lies_in_its_month(till: Service) -> None:
    """K-Pay's answers and postbacks about one payment lie in one partition."""
    refid = _paid(till)
    assert _places(till, refid) == {_partition(till, refid)}


@pytest.mark.parametrize("offset", ["70 days", "2 months - 1 second"], ids=["later", "at the end of a month"])
def test_the_same_words_are_no_news_in_another_month(till: Service, offset: str) -> None:
    """What comes months later goes to the payment's month, by UTC, so that the key still knows it."""
    refid = _paid(till)
    begins = (
        "date_trunc('month', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'" if "second" in offset else "created_at"
    )
    _ask(till, f"UPDATE payments SET created_at = {begins} + interval '{offset}' WHERE refid = $1", refid)  # noqa: S608
    late = _partition(till, refid)
    assert late not in _places(till, refid)
    kept = "SELECT source FROM evidence WHERE refid = $1 AND tableoid = $2::regclass ORDER BY source"
    for _ in range(2):
        assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
        assert till.http.post(f"/v1/payments/{refid}/check").status_code == 200
        assert _ask(till, kept, refid, late) == ["checkstatus", "postback"]
    told = till.events(refid)
    assert [event["source"] for event in told].count("postback") == 2
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))


def test_a_postback_of_a_payment_that_is_not_there_has_no_month(till: Service) -> None:
    """It is kept all the same, once, with what is from before there were months."""
    for _ in range(2):
        said = {"tid": "A1", "refid": "restored", "statusid": "01"}
        assert till.http.post(till.returl("restored"), json=said).json()["reply"] == "OK"
    assert _ask(till, "SELECT tableoid::regclass::text FROM evidence WHERE refid = 'restored'") == ["evidence_before"]


def test_nothing_is_lost_when_months_run_out(till: Service) -> None:
    """Without a partition everything goes on, the doctor says so, and `kpayd prune` makes the months to come."""
    for month in months.lacking([], _month(till, _paid(till))):
        _ask(till, f"DROP TABLE {months.name_of(month)}")
    refid = _paid(till)
    _ask(till, "UPDATE payments SET created_at = created_at - interval '10 years' WHERE refid = $1", refid)
    _ask(till, "ALTER TABLE evidence DETACH PARTITION evidence_before")
    for _ in range(2):
        assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
    assert "evidence_rest" in _places(till, refid)
    assert [event["source"] for event in till.events(refid)].count("postback") == 2

    told = run_command(till.env, "doctor", "--json")
    [wrong] = [each["detail"] for each in json.loads(told.stdout) if not each["ok"]]
    assert wrong.startswith("not made: ")
    assert "kpayd migrate" in wrong
    assert run_command(till.env, "prune", "--older-than", "30", "--dry-run").returncode == 0
    assert run_command(till.env, "doctor").returncode == 1
    assert run_command(till.env, "prune", "--older-than", "30").returncode == 0
    assert run_command(till.env, "doctor").returncode == 0
    assert "evidence_rest" in _places(till, refid)


def test_who_makes_months_at_once_makes_them_once(till: Service) -> None:
    """Of two prunes and a migration at once each ends well, and a hole in the months is filled."""
    made = months.lacking([], _month(till, _paid(till)))
    for month in (made[0], made[5], made[-1]):
        _ask(till, f"DROP TABLE {months.name_of(month)}")

    async def at_once() -> list[Pruned]:
        async with open_database(till.database_url, pool=2) as database:
            migration = asyncio.create_task(asyncio.to_thread(migrate, till.database_url))
            done = await asyncio.gather(*(prune(database, timedelta(days=30)) for _ in range(2)))
            await migration
            return done

    assert asyncio.run(at_once()) == [Pruned(), Pruned()]
    there = months.among(_ask(till, "SELECT inhrelid::regclass::text FROM pg_inherits"))
    assert not months.lacking(there, _month(till, _paid(till)))


def test_who_may_not_make_months_is_told_and_prunes_all_the_same(till: Service, postgres: Postgres) -> None:
    """A role that owns nothing takes personal data out, and says whose business the months are."""
    if isinstance(postgres, Given):
        pytest.skip("a role of that server would need a password")
    refid = _paid(till)
    eventually(lambda: not _ask(till, _DUE))
    _ask(till, f"DROP TABLE {months.name_of(months.lacking([], _month(till, refid))[-1])}")
    role = f"pruner_{refid[-12:].lower().replace('-', '_')}"
    _ask(till, f"CREATE ROLE {role} LOGIN")
    for right in ("SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public", "USAGE ON SCHEMA public"):
        _ask(till, f"GRANT {right} TO {role}")
    parts = urlsplit(till.database_url)
    url = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    try:
        done = run_command(dict(till.env) | {"KPAYD_DATABASE_URL": url}, "prune", "--older-than", "30")
    finally:
        _ask(till, f"DROP OWNED BY {role}")
        _ask(till, f"DROP ROLE {role}")
    assert done.returncode == 0, done.stderr
    assert "0 payments lost" in done.stdout
    assert "does not own the table evidence" in done.stderr


def test_a_month_without_bodies_gives_its_space_back(till: Service) -> None:
    """The bodies of a month go with the last of them; timeline and payment stay, and what K-Pay says late is taken."""
    kept, refid = _paid(till), _paid(till)
    place = _partition(till, refid)
    _ask(till, "UPDATE payments SET review_reasons = '{contradiction}' WHERE refid = $1", kept)
    eventually(lambda: not _ask(till, _DUE))
    told = till.events(refid)
    assert _prune(till, -IN_TEN_WEEKS) == Pruned(payments=1)
    assert _ask(till, f"SELECT 1 FROM {place} WHERE body <> ''"), "one is under review"  # noqa: S608 - our own name

    _ask(till, "UPDATE payments SET review_reasons = '{}' WHERE refid = $1", kept)
    assert _prune(till, -IN_TEN_WEEKS, dry_run=True) == Pruned(payments=1)
    assert _prune(till, -IN_TEN_WEEKS) == Pruned(payments=1, months=1)
    assert not _ask(till, f"SELECT 1 FROM {place}")  # noqa: S608 - our own name
    assert _prune(till, -IN_TEN_WEEKS) == Pruned()
    assert [event["seq"] for event in till.events(refid)] == [event["seq"] for event in told]
    assert till.postback(refid, statusid="01").json()["reply"] == "OK"
    assert till.read(refid)["status"] == "succeeded"


def test_a_body_that_comes_while_its_month_is_emptied_is_kept(till: Service) -> None:
    """Between the look and the lock a postback may be stored: the look under the lock sees it."""
    refid = _paid(till)
    eventually(lambda: not _ask(till, _DUE))
    _prune(till, timedelta(days=30))
    query(till.database_url, "UPDATE evidence SET body = ''")
    late = "INSERT INTO evidence (refid, digest, source, body, content_type, month) VALUES ($1, 'x', '', 'x', '', $2)"

    async def meanwhile() -> int:
        async with open_database(till.database_url, pool=3) as database, database.engine.connect() as writer:
            await writer.exec_driver_sql(late, (refid, _month_of))
            emptying = asyncio.create_task(prune(database, -IN_TEN_WEEKS))
            waiting = text("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = CAST(:of AS regclass)")
            async with database.autocommit() as looking:
                while not (await looking.execute(waiting, {"of": place})).all():  # noqa: ASYNC110 - the database is waited for
                    await asyncio.sleep(0.005)
            await writer.commit()
            return (await emptying).months

    _month_of, place = _month(till, refid), _partition(till, refid)
    assert asyncio.run(meanwhile()) == 0
    assert _ask(till, "SELECT 1 FROM evidence WHERE digest = 'x'")


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

    assert asyncio.run(while_read()) == Pruned(payments=1, left="somebody holds the table evidence")
    assert _prune(till, -IN_TEN_WEEKS).months == 1


def test_there_and_back_again_with_rows(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bodies that lie in months are all there in the schema before, and those of the schema before in this one."""
    folder, url = tmp_path_factory.mktemp("rows"), new_database()
    with run_service(folder, url, simulator, QUICK) as service:
        refid = _paid(service)
    counts = "SELECT source, count(*) FROM evidence WHERE body <> '' GROUP BY 1 ORDER BY 1"
    before = query(url, counts)
    twice = "INSERT INTO evidence SELECT refid, digest, source, body, '', NULL, NULL, created_at, $1 FROM evidence"
    query(url, f"{twice} LIMIT 1", date(2020, 1, 1))  # what code before and after wrote of the same words
    for _ in range(2):
        command.downgrade(_config(url), "0006")
        assert query(url, counts) == before
        query(url, "GRANT SELECT ON evidence TO PUBLIC")
        migrate(url)
        assert query(url, counts) == before
        assert query(url, "SELECT 1 FROM pg_class, aclexplode(relacl) WHERE relname = 'evidence' AND grantee = 0")
    with run_service(folder, url, simulator, QUICK) as service:
        assert _places(service, refid) == {"evidence_before"}
        again = _paid(service)
        assert _places(service, again) == {_partition(service, again)}
