"""The listener where an authentic postback decides, and where the database refuses."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from app.dev.postgres import EmbeddedPostgres
from tests.conftest import QUICK
from tests.support import (
    Json,
    Service,
    Simulator,
    at_once,
    bodies,
    eventually,
    new_refid,
    payment,
    query,
    run_service,
    spoken,
)

NEVER_ACTS = "250780000005"


@pytest.fixture(scope="module")
def believing(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service for which an authentic postback decides."""
    folder = tmp_path_factory.mktemp("believing")
    with run_service(folder, new_database(), simulator, QUICK | {"CONFIRM": "never"}) as service:
        yield service


def post(service: Service, of: Json, **changes: object) -> httpx2.Response:
    """Send a postback that says a payment was paid, with `changes`."""
    said = {"tid": of["tid"], "refid": of["refid"], "momtransactionid": f"m{new_refid()}", "statusid": "01"} | changes
    return httpx2.post(f"{service.url}{service.returl(of['refid'])}", json=said, trust_env=False)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "succeeded"),
        ({"statusid": 1}, "succeeded"),
        ({"statusid": "02", "momtransactionid": ""}, "failed"),
        ({"statusid": "682", "momtransactionid": ""}, "failed"),
        ({"statusid": "03"}, "pending"),
        ({"statusid": "611"}, "pending"),
        ({"statusid": "602"}, "pending"),
        ({"statusid": "01x"}, "pending"),
        ({"statusid": [1]}, "pending"),
        ({"statusid": None}, "pending"),
    ],
)
def test_without_confirmation_an_authentic_postback_decides(changes: Json, status: str, believing: Service) -> None:
    """Under CONFIRM=never 01 is paid and a failure is one; what is neither decides nothing."""
    begun = believing.start(NEVER_ACTS)
    assert post(believing, begun, **changes).status_code == 200
    # Whether it needs review is left open: K-Pay itself still has it pending, and a check may say so.
    assert believing.read(begun["refid"])["status"] == status


@pytest.mark.parametrize(
    "body",
    [
        b'{"refid": "%s", "tid": "%s", "statusid": "01"',
        b'{"refid": "%s", "tid": "%s", "statusid": "01", "statusid": "02"}',
        b'{"refid": "%s", "tid": "%s", "statusid": "02", "statusid": "01"}',
        b'[{"refid": "%s", "tid": "%s", "statusid": "01"}]',
        b'{"refid": "%s0", "tid": "%s", "statusid": "01"}',
        b'{"refid": "%s", "tid": "%s0", "statusid": "01"}',
        b"<refid>%s</refid><tid>%s</tid><statusid>01</statusid>",
    ],
    ids=["cut_short", "twice_01_02", "twice_02_01", "array", "other_refid", "other_tid", "xml"],
)
def test_without_confirmation_doubt_decides_nothing(body: bytes, believing: Service) -> None:
    """Under CONFIRM=never, too, what is unreadable, contradictory or another's makes no payment succeed or fail."""
    begun = believing.start(NEVER_ACTS)
    content = body % (begun["refid"].encode(), begun["tid"].encode())
    assert believing.http.post(believing.returl(begun["refid"]), content=content).status_code in {200, 400}
    assert bodies(believing, begun["refid"]) == [content]
    assert believing.read(begun["refid"])["status"] == "pending"


def test_without_confirmation_success_is_not_left(believing: Service) -> None:
    """Under CONFIRM=never 02 after 01 changes nothing but that a person is to look, and 01 after 02 is late."""
    paid, failed = believing.start(NEVER_ACTS), believing.start(NEVER_ACTS)
    for statusid in ("01", "02"):
        post(believing, paid, statusid=statusid, momtransactionid="" if statusid == "02" else f"m{paid['refid']}")
    for statusid in ("02", "01"):
        post(believing, failed, statusid=statusid, momtransactionid="" if statusid == "02" else f"m{failed['refid']}")
    first, second = believing.read(paid["refid"]), believing.read(failed["refid"])
    assert (first["status"], "contradiction" in first["review_reasons"]) == ("succeeded", True)
    assert (second["status"], "late_success" in second["review_reasons"]) == ("succeeded", True)


@contextmanager
def out_of_reach(postgres: EmbeddedPostgres, service: Service) -> Iterator[None]:
    """Let nobody into the service's database until the block ends."""
    name = urlsplit(service.database_url).path[1:]
    query(postgres.url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        query(postgres.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
    finally:
        query(postgres.url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_nothing_is_acknowledged_without_a_database(
    believing: Service, postgres: EmbeddedPostgres, simulator: Simulator
) -> None:
    """With the database out of reach a postback is 503, soon; a start, too, and K-Pay hears nothing of it."""
    begun, asked = believing.start(NEVER_ACTS), payment(refid=new_refid())
    with out_of_reach(postgres, believing):
        for _ in range(3):
            began = time.monotonic()
            answer = post(believing, begun, momtransactionid="m1")
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            assert time.monotonic() - began < 5
        wrong = believing.http.post(believing.returl(begun["refid"], mac="x" * 27), json={})
        assert wrong.status_code == 404
        start = believing.http.post("/v1/payments", json=asked)
        assert (start.status_code, start.json()["code"]) == (503, "unavailable")
        assert believing.http.get("/readyz").status_code == 503
    assert simulator.requests(asked["refid"]) == 0
    eventually(lambda: post(believing, begun, momtransactionid="m1").status_code == 200)
    assert len(bodies(believing, begun["refid"])) == 1
    assert believing.read(begun["refid"])["status"] == "succeeded"


def test_a_commit_that_fails_is_not_acknowledged(believing: Service) -> None:
    """Where COMMIT itself fails it is 503; one row that cannot be stored does not fail those beside it."""
    refuse = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION USING ERRCODE = CASE WHEN NEW.refid LIKE 'full-%' THEN '53100' ELSE '23514' END;
        END $$"""
    deferred = """
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON evidence DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.refid LIKE 'full-%' OR NEW.refid LIKE 'poison-%') EXECUTE FUNCTION refuse()"""
    for statement in (refuse, deferred):
        query(believing.database_url, statement)

    def said(refid: str) -> bytes:
        return spoken("POST", believing.returl(refid), json.dumps({"refid": refid, "statusid": "01"}).encode())

    good, full, poison = [new_refid() for _ in range(40)], f"full-{new_refid()}", f"poison-{new_refid()}"
    assert at_once(believing.url, [said(full)])[0].status == 503
    answers = at_once(believing.url, [said(refid) for refid in (*good[:20], poison, *good[20:])])
    assert Counter(each.status for each in answers) == {200: 40, 503: 1}
    assert [bodies(believing, refid) for refid in (full, poison)] == [[], []]
    assert len(query(believing.database_url, "SELECT FROM evidence WHERE refid = ANY($1)", good)) == 40
