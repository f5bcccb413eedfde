"""Raw bodies in months: where rows go, and the way there beside the version before."""

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import pytest
from alembic import command

from app import months
from app.schema import _config
from tests.conftest import QUICK
from tests.support import Service, Simulator, eventually, query, run_service

_WHERE = "SELECT DISTINCT tableoid::regclass::text FROM bodies WHERE refid = $1"
_DUE = "SELECT 1 FROM payments WHERE next_check_at IS NOT NULL"


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


def test_a_postback_of_a_payment_that_is_not_there_has_no_month(till: Service) -> None:
    """It is kept all the same, once, with what is from before there were months."""
    for _ in range(2):
        said = {"tid": "A1", "refid": "restored", "statusid": "01"}
        assert till.http.post(till.returl("restored"), json=said).json()["reply"] == "OK"
    assert _ask(till, "SELECT tableoid::regclass::text FROM bodies WHERE refid = 'restored'") == ["bodies_before"]


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
    role = urlsplit(url).path[1:] + "_app"
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
