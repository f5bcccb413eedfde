"""The listener where an authentic postback decides, and where the database refuses."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import QUICK
from tests.given import Postgres
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
        b'{"refid": "%s", "tid": "%s", "statusid": "02", "status\\u0069d": "01"}',
        b'{"refid": "%s", "tid": "%s", "tid": "another", "statusid": "01"}',
        b"refid=%s&tid=%s&statusid=02&statusid=01",
        b'[{"refid": "%s", "tid": "%s", "statusid": "01"}]',
        b'{"refid": "%s0", "tid": "%s", "statusid": "01"}',
        b'{"refid": "%s", "tid": "%s0", "statusid": "01"}',
        b"<refid>%s</refid><tid>%s</tid><statusid>01</statusid>",
    ],
    ids=[
        "cut_short",
        "twice_01_02",
        "twice_02_01",
        "twice_by_escape",
        "twice_tid",
        "twice_in_form",
        "array",
        "other_refid",
        "other_tid",
        "xml",
    ],
)
def test_fault_22_doubt_decides_nothing_even_where_postbacks_decide(body: bytes, believing: Service) -> None:
    """Where postbacks decide, one that contradicts itself, is cut short or is another's still decides nothing."""
    begun = believing.start(NEVER_ACTS)
    content = body % (begun["refid"].encode(), begun["tid"].encode())
    assert believing.http.post(believing.returl(begun["refid"]), content=content).status_code in {200, 400}
    assert bodies(believing, begun["refid"]) == [content]
    assert believing.read(begun["refid"])["status"] == "pending"


def says_in_turn(service: Service, *statusids: str) -> Json:
    """Start a payment, send a postback for each of `statusids`, and return the payment after that."""
    begun = service.start(NEVER_ACTS)
    for statusid in statusids:
        said = {"statusid": statusid, "momtransactionid": "" if statusid == "02" else f"m{begun['refid']}"}
        assert post(service, begun, **said).status_code == 200
    return service.read(begun["refid"])


def test_fault_07_paid_and_then_not_paid(believing: Service) -> None:
    """After "paid", "not paid" changes nothing, even where postbacks decide: it is noted, and a person is to look."""
    now = says_in_turn(believing, "01", "02", "02", "01")
    assert (now["status"], now["failure"], "contradiction" in now["review_reasons"]) == ("succeeded", None, True)
    types = [event["type"] for event in believing.events(now["refid"])]
    assert (types.count("payment.succeeded"), types.count("payment.failed")) == (1, 0)
    assert "payment.needs_review" in types


def test_fault_08_not_paid_and_then_paid(believing: Service) -> None:
    """After "not paid", "paid" makes the payment succeed, as a late success that a person is to look at."""
    now = says_in_turn(believing, "02", "01", "02", "01")
    assert (now["status"], now["failure"], "late_success" in now["review_reasons"]) == ("succeeded", None, True)
    types = [event["type"] for event in believing.events(now["refid"])]
    assert types.index("payment.failed") < types.index("payment.succeeded")


@contextmanager
def out_of_reach(postgres: Postgres, service: Service) -> Iterator[None]:
    """Let nobody into the service's database until the block ends."""
    name = urlsplit(service.database_url).path[1:]
    query(postgres.url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        query(postgres.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
    finally:
        query(postgres.url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_fault_23_nothing_is_acknowledged_without_a_database(
    believing: Service, postgres: Postgres, simulator: Simulator
) -> None:
    """While the database is out of reach a postback is 503, so that K-Pay comes again, and no payment is started."""
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


@contextmanager
def failing_commits(service: Service, table: str, when: str, sqlstate: str = "53100") -> Iterator[None]:
    """Let every COMMIT fail whose transaction has written a row `when` this holds, until the block ends."""
    name = f"refuse_{new_refid().replace('-', '_')}"
    for statement in (
        f"""CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$""",
        f"""CREATE CONSTRAINT TRIGGER {name} AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION {name}()""",
    ):
        query(service.database_url, statement)
    try:
        yield
    finally:
        query(service.database_url, f"DROP FUNCTION {name} CASCADE")


def test_fault_35_a_postback_whose_commit_fails(believing: Service) -> None:
    """A postback whose COMMIT fails is 503 and never OK, and one bad row does not fail those beside it."""

    def said(refid: str) -> bytes:
        return spoken("POST", believing.returl(refid), json.dumps({"refid": refid, "statusid": "01"}).encode())

    good, full, poison = [new_refid() for _ in range(40)], f"full-{new_refid()}", f"poison-{new_refid()}"
    with (
        failing_commits(believing, "bodies", "NEW.refid LIKE 'full-%'"),
        failing_commits(believing, "bodies", "NEW.refid LIKE 'poison-%'", "23514"),
    ):
        assert at_once(believing.url, [said(full)])[0].status == 503
        answers = at_once(believing.url, [said(refid) for refid in (*good[:20], poison, *good[20:])])
        assert Counter(each.status for each in answers) == {200: 40, 503: 1}
        assert [bodies(believing, refid) for refid in (full, poison)] == [[], []]
        assert len(query(believing.database_url, "SELECT FROM bodies WHERE refid = ANY($1)", good)) == 40
    assert at_once(believing.url, [said(full)])[0].status == 200


def test_fault_35_a_success_whose_commit_fails(believing: Service) -> None:
    """Where a postback decides and the decision's COMMIT fails it is 503, and the same postback again decides."""
    begun = believing.start(NEVER_ACTS)
    when = f"NEW.refid = '{begun['refid']}' AND NEW.type = 'payment.succeeded'"
    with failing_commits(believing, "events", when):
        assert post(believing, begun, momtransactionid="m35").status_code == 503
        assert believing.read(begun["refid"])["status"] == "pending"
    assert post(believing, begun, momtransactionid="m35").status_code == 200
    assert believing.read(begun["refid"])["status"] == "succeeded"
    assert len(bodies(believing, begun["refid"])) == 1


def test_fault_35_a_start_whose_commit_fails(believing: Service, simulator: Simulator) -> None:
    """A start whose COMMIT fails is 503 and K-Pay never hears of it; the same request again starts the payment."""
    asked = payment(NEVER_ACTS, refid=f"lost-{new_refid()}")
    with failing_commits(believing, "payments", "NEW.refid LIKE 'lost-%'"):
        answer = believing.http.post("/v1/payments", json=asked)
        assert (answer.status_code, answer.json()["code"], "retry-after" in answer.headers) == (
            503,
            "unavailable",
            True,
        )
        assert believing.http.get(f"/v1/payments/{asked['refid']}").status_code == 404
        assert (simulator.ledger(asked["refid"]), simulator.requests(asked["refid"])) == (None, 0)
    answer = believing.http.post("/v1/payments", json=asked)
    assert (answer.status_code, answer.json()["status"]) == (201, "pending")
    assert simulator.requests(asked["refid"]) == 1


def test_fault_35_a_reply_whose_commit_fails(believing: Service, simulator: Simulator) -> None:
    """Where K-Pay's reply cannot be committed the caller is told nothing of it, and the checks find it all out."""
    with failing_commits(believing, "events", "NEW.refid LIKE 'mute-%' AND NEW.source = 'gateway_reply'"):
        told = believing.start("250780000010", refid=f"mute-{new_refid()}")
    assert (told["status"], told["tid"]) == ("created", None)
    assert believing.read(told["refid"], wait=20)["status"] == "succeeded"
    assert simulator.requests(told["refid"]) == 1
