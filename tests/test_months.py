"""Months in the database: where rows go, what happens when months run out, what is given back, and the way there."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from alembic import command
from sqlalchemy import text

from app import months
from app.database import Database, open_database
from app.retention import Pruned, prune
from app.schema import _config, migrate
from tests.conftest import QUICK
from tests.given import Given, Postgres, name_of
from tests.support import Service, Simulator, eventually, query, run_command, run_service

_WHERE = "SELECT DISTINCT tableoid::regclass::text FROM bodies WHERE refid = $1"
_MONTH = f"SELECT {months.MONTH_OF.format(created_at='created_at')} FROM payments WHERE refid = $1"  # noqa: S608 - ours
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
    month: date = _ask(service, _MONTH, refid)[0]
    return month


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


def _there(service: Service) -> Sequence[date]:
    return months.among(_ask(service, "SELECT inhrelid::regclass::text FROM pg_inherits"))


async def _somebody_waits(database: Database) -> None:
    """Return as soon as a session of this database waits for another's lock."""
    waiting = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    async with database.autocommit() as looking:
        while not (await looking.execute(waiting)).all():  # noqa: ASYNC110 - the database is waited for
            await asyncio.sleep(0.005)


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
    kept = "SELECT source FROM bodies WHERE refid = $1 AND tableoid = $2::regclass ORDER BY source"
    for _ in range(2):
        assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
        assert till.http.post(f"/v1/payments/{refid}/check").status_code == 200
        assert _ask(till, kept, refid, late) == ["checkstatus", "postback"]
    told = till.events(refid)
    assert [event["source"] for event in told].count("postback") == 2
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))


def test_months_are_those_of_utc_whatever_zone_the_database_is_in(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Behind a pooler a session has the zone of the database: in one where the next month began long ago, too."""
    url = new_database()
    query(url, f"ALTER DATABASE {name_of(url)} SET timezone = 'Pacific/Kiritimati'")
    more = QUICK | {"DATABASE_URL": url, "DATABASE_POOLED": "true"}
    with run_service(tmp_path_factory.mktemp("zone"), url, simulator, more) as service:
        refid = _paid(service)
        begins = "date_trunc('month', created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
        _ask(service, f"UPDATE payments SET created_at = {begins} - interval '1 second' WHERE refid = $1", refid)  # noqa: S608
        assert service.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
        last = "SELECT tableoid::regclass::text FROM bodies WHERE refid = $1 ORDER BY created_at DESC LIMIT 1"
        assert _ask(service, last, refid) == ["bodies_before"]


def test_a_postback_of_a_payment_that_is_not_there_has_no_month(till: Service) -> None:
    """It is kept all the same, once, with what is from before there were months."""
    for _ in range(2):
        said = {"tid": "A1", "refid": "restored", "statusid": "01"}
        assert till.http.post(till.returl("restored"), json=said).json()["reply"] == "OK"
    assert _ask(till, "SELECT tableoid::regclass::text FROM bodies WHERE refid = 'restored'") == ["bodies_before"]


def test_nothing_is_lost_when_months_run_out(till: Service) -> None:
    """Without a partition everything goes on, the doctor says so, and `kpayd prune` makes the months to come."""
    for month in months.lacking([], _month(till, _paid(till))):
        _ask(till, f"DROP TABLE {months.name_of(month)}")
    refid = _paid(till)
    _ask(till, "UPDATE payments SET created_at = created_at - interval '10 years' WHERE refid = $1", refid)
    _ask(till, "ALTER TABLE bodies DETACH PARTITION bodies_before")
    for _ in range(2):
        assert till.postback(refid, statusid="01", momtransactionid="M-late").json()["reply"] == "OK"
    assert "bodies_rest" in _places(till, refid)
    assert [event["source"] for event in till.events(refid)].count("postback") == 2

    told = run_command(till.env, "doctor", "--json")
    [wrong] = [each["detail"] for each in json.loads(told.stdout) if not each["ok"]]
    assert wrong.startswith("not made: ")
    assert "kpayd migrate" in wrong
    assert run_command(till.env, "prune", "--older-than", "30", "--dry-run").returncode == 0
    assert run_command(till.env, "doctor").returncode == 1
    assert run_command(till.env, "prune", "--older-than", "30").returncode == 0
    assert run_command(till.env, "doctor").returncode == 0
    assert "bodies_rest" in _places(till, refid)


def test_who_makes_months_at_once_makes_them_once(till: Service) -> None:
    """Whoever comes while months are being made waits for them and finds them there, holes and all; postbacks go on."""
    refid = _paid(till)
    made = months.lacking([], _month(till, refid))
    for month in (made[0], made[5], made[-1]):
        _ask(till, f"DROP TABLE {months.name_of(month)}")

    async def make(database: Database) -> None:
        async with database.engine.begin() as connection:
            await connection.run_sync(months.make)

    async def at_once() -> str:
        async with open_database(till.database_url, pool=3) as database:
            async with database.engine.begin() as first:
                await first.run_sync(months.make)
                said = await asyncio.to_thread(till.postback, refid, statusid="01", momtransactionid="M-late")
                second = asyncio.create_task(make(database))
                await _somebody_waits(database)
            await second
            return str(said.json()["reply"])

    assert asyncio.run(at_once()) == "OK"
    assert set(made) <= set(_there(till))


def test_a_migration_makes_the_months_to_come(till: Service) -> None:
    """`kpayd migrate` fills up the months of a schema that is current."""
    made = months.lacking([], _month(till, _paid(till)))
    _ask(till, f"DROP TABLE {months.name_of(made[5])}")
    migrate(till.database_url)
    assert made[5] in _there(till)


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
    assert "months to come: this role does not own the table" in done.stderr


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


@pytest.mark.parametrize("zone", ["UTC", "Africa/Kigali", "America/New_York"])
@pytest.mark.parametrize(
    ("at", "month"),
    [
        ("2026-12-01T00:00:00Z", date(2026, 12, 1)),
        ("2026-12-31T23:59:59.999999Z", date(2026, 12, 1)),
        ("2027-01-01T01:59:00+02:00", date(2026, 12, 1)),
        ("2024-02-29T00:00:00Z", date(2024, 2, 1)),
    ],
)
def test_the_month_of_a_payment_is_that_of_utc(postgres: Postgres, zone: str, at: str, month: date) -> None:
    """Whatever zone a session is in, one instant has one month."""
    said = months.MONTH_OF.format(created_at="CAST(CAST($1 AS text) AS timestamptz)")
    in_zone = f"SELECT {said} FROM set_config('timezone', $2, false)"  # noqa: S608 - our own words
    assert query(postgres.url, in_zone, at, zone)[0][0] == month


def test_a_body_that_comes_while_its_month_is_emptied_is_kept(till: Service) -> None:
    """Between the look and the lock a postback may be stored: the look under the lock sees it."""
    refid = _paid(till)
    eventually(lambda: not _ask(till, _DUE))
    _prune(till, timedelta(days=30))
    query(till.database_url, "UPDATE bodies SET body = ''")
    late = "INSERT INTO bodies (refid, digest, source, body, content_type, month) VALUES ($1, 'x', '', 'x', '', $2)"

    async def meanwhile() -> int:
        async with open_database(till.database_url, pool=5) as database, database.engine.connect() as writer:
            await writer.exec_driver_sql(late, (refid, _month_of))
            emptying = asyncio.create_task(prune(database, -IN_TEN_WEEKS))
            await _somebody_waits(database)
            await writer.commit()
            return (await emptying).months

    _month_of = _month(till, refid)
    assert asyncio.run(meanwhile()) == 0
    assert _ask(till, "SELECT 1 FROM bodies WHERE digest = 'x'")


def test_a_month_that_is_not_over_keeps_what_it_has(till: Service) -> None:
    """Digests of payments that K-Pay may still speak of stay, though their bodies are gone."""
    refid = _paid(till)
    _ask(till, "UPDATE bodies SET body = ''")
    assert _prune(till, timedelta(days=30)).months == 0
    assert _ask(till, "SELECT 1 FROM bodies WHERE refid = $1", refid)


def test_who_reads_a_month_is_not_waited_for(till: Service) -> None:
    """A dump that holds a month delays neither the pruning nor the other months: it is emptied another time."""
    refid = _paid(till)
    held, other = _partition(till, refid), months.following(_month(till, refid))
    _ask(till, "INSERT INTO bodies VALUES ($1, 'x', $2, 'postback', 'said', '')", refid, other)
    eventually(lambda: not _ask(till, _DUE))

    async def while_read() -> Pruned:
        async with open_database(till.database_url, pool=5) as database, database.engine.connect() as reader:
            await reader.exec_driver_sql(f"SELECT 1 FROM {held}")  # noqa: S608 - our own name
            return await asyncio.wait_for(prune(database, -IN_TEN_WEEKS), 10)

    assert asyncio.run(while_read()) == Pruned(payments=1, months=1, left=[f"{held}: somebody holds the table"])
    assert _prune(till, -IN_TEN_WEEKS).months == 1


def test_words_that_the_version_before_kept_do_no_harm(till: Service) -> None:
    """It looks in a table of its own: the same postback is noted once more, and changes nothing."""
    refid = _paid(till)
    eventually(lambda: not _ask(till, _DUE))
    columns = "refid, digest, source, body, content_type, http_status, remote, created_at"
    moved = f"WITH gone AS (DELETE FROM bodies RETURNING *) INSERT INTO evidence SELECT {columns} FROM gone"  # noqa: S608 - our own names
    _ask(till, moved)
    before, told = till.read(refid), till.events(refid)
    [said] = _ask(till, "SELECT body FROM evidence WHERE refid = $1 AND source = 'postback'", refid)
    for _ in range(2):
        assert till.http.post(till.returl(refid), content=said).json()["reply"] == "OK"
    assert till.events(refid)[:-1] == told
    assert [(event["type"], event["source"]) for event in till.events(refid)[-1:]] == [("evidence", "postback")]
    assert till.read(refid) == before
    for table in ("bodies", "evidence"):
        assert _ask(till, f"SELECT body FROM {table} WHERE source = 'postback'") == [said]  # noqa: S608 - our own names


def test_the_migration_makes_a_year_and_carries_rights_over(new_database: Callable[[], str]) -> None:
    """A role that was granted rights on `evidence` by name writes to `bodies`, too, and what was kept before stays."""
    url = new_database()
    role = f"{name_of(url)}_app"
    command.downgrade(_config(url), "0006")
    row = "(refid, digest, source, body, content_type) VALUES ('P1', 'x', 'postback', 'said', '')"
    query(url, f"INSERT INTO evidence {row}")
    query(url, f"CREATE ROLE {role}")
    try:
        query(url, f"GRANT SELECT, INSERT, UPDATE ON evidence TO {role}")
        query(url, "GRANT SELECT ON evidence TO PUBLIC")
        command.upgrade(_config(url), "head")
        today = query(url, "SELECT (now() AT TIME ZONE 'UTC')::date")[0][0]
        made = [row[0] for row in query(url, "SELECT inhrelid::regclass::text FROM pg_inherits")]
        assert months.among(made) == [today.replace(day=1), *months.lacking([], today)]
        assert {"bodies_before", "bodies_rest"} < set(made)
        for month in ("-infinity", str(today), "2099-01-01"):
            row = f"('P1', 'x', '{month}', 'postback', 'said', '')"
            once = "ON CONFLICT (refid, digest, month) DO UPDATE SET source = '' WHERE false"
            wrote = f"INSERT INTO bodies VALUES {row} {once}"  # noqa: S608 - our own words
            query(url, f"DO $$ BEGIN SET LOCAL ROLE {role}; {wrote}; END $$")
        may = "SELECT grantee::regrole::text FROM pg_class, aclexplode(relacl) WHERE relname = 'bodies' AND grantee = 0"
        assert query(url, may)
        assert [row[0] for row in query(url, "SELECT body FROM evidence")] == [b"said"]
    finally:
        query(url, f"DROP OWNED BY {role}")
        query(url, f"DROP ROLE {role}")
