"""What no postback told: crashes, replicas, a gateway that is down or refuses us, time that runs out."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from app.dev.laptop import free_port
from tests.conftest import QUICK
from tests.support import Simulator, answers, eventually, kpayd, new_refid, payment, query, run_service, run_simulator

NewDatabase = Callable[[], str]


@pytest.fixture(scope="module")
def own_simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """Run a K-Pay that these tests may break."""
    with run_simulator(tmp_path_factory.mktemp("own-simulator")) as simulator:
        yield simulator


def test_fault_34_a_kill_while_kpay_is_asked(tmp_path: Path, new_database: NewDatabase, simulator: Simulator) -> None:
    """Killed while K-Pay is asked for money, the service finds out by checkstatus and never sends the request again."""
    port, database = free_port(), new_database()
    taken, lost = new_refid(), new_refid()
    numbers = {taken: "250780000030", lost: "250780000031"}  # both held for a minute; taken in, and not
    with run_service(tmp_path, database, simulator, QUICK | {"GATEWAY_TIMEOUT": "20"}, port=port) as service:
        for refid, number in numbers.items():
            threading.Thread(
                target=_ask_and_be_cut, args=(service.url, service.key, payment(number, refid=refid)), daemon=True
            ).start()
        eventually(lambda: simulator.requests(taken) == 1 and simulator.requests(lost) == 1)
        service.process.kill()
        key = service.key
    quick = QUICK | {"GATEWAY_TIMEOUT": "1", "UNKNOWN_GRACE": "1"}
    with run_service(tmp_path, database, simulator, quick, port=port) as again, again.client(key) as http:
        assert eventually(lambda: http.get(f"/v1/payments/{taken}?wait=5").json()["status"] == "succeeded")
        # The first service's word on how long its call may last stands in the row.
        end = eventually(lambda: (now := http.get(f"/v1/payments/{lost}").json())["failure"] and now, seconds=40)
        assert end["failure"]["code"] == "not_received"
        assert [simulator.requests(refid) for refid in numbers] == [1, 1]


def _ask_and_be_cut(url: str, key: str, body: object) -> None:
    with httpx2.Client(trust_env=False, timeout=60) as http, pytest.raises(httpx2.TransportError):
        http.post(f"{url}/v1/payments", json=body, headers={"Authorization": f"Bearer {key}"})


def test_fault_43_replicas_share_the_checks(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """Several processes over one database ask K-Pay about each payment once a turn, and all payments end."""
    database, schedule = new_database(), {"CHECK_SCHEDULE": "4,600"}
    with (
        run_service(tmp_path, database, own_simulator, QUICK | schedule, "--no-worker") as web,
        kpayd(tmp_path, web.env, "worker"),
        kpayd(tmp_path, web.env, "worker"),
    ):
        refids = [web.start("250780000010")["refid"] for _ in range(40)]  # paid, and no postback
        for refid in refids:
            assert web.read(refid, wait=15)["status"] == "succeeded"
        checks = [(own_simulator.ledger(refid) or {})["checks"] for refid in refids]
        assert checks == [1] * len(refids)


def test_fault_31_a_gateway_that_is_down_is_left_alone_and_found_again(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """While K-Pay is down payments are `created` and readiness tells why; it comes back, and all of them end."""
    with run_service(tmp_path, new_database(), own_simulator, QUICK) as service:
        own_simulator.behave(down=True)
        try:
            started = [service.start("250780000000") for _ in range(8)]
            assert {each["status"] for each in started} == {"created"}
            ready = eventually(
                lambda: (body := service.http.get("/readyz")).json()["gateway"]["status"] == "down" and body
            )
            assert ready.status_code == 200
            assert ready.json()["gateway"]["reason"]
            assert "kpayd_gateway_breaker_open 1.0" in service.http.get("/metrics").text
        finally:
            own_simulator.behave(down=False)
        # A gateway that is down has recorded nothing.
        ends = [service.read(each["refid"], wait=20) for each in started]
        assert {end["failure"]["code"] for end in ends} == {"not_received"}
        assert service.http.get("/readyz").json()["gateway"]["status"] == "ok"
        assert service.read(service.start()["refid"], wait=10)["status"] == "succeeded"


def test_fault_30_a_gateway_that_refuses_us_says_nothing_of_the_payer(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """A K-Pay that refuses us fails no payment under way and stops the questions; a new payment is `misconfigured`."""
    with run_service(tmp_path, new_database(), own_simulator, QUICK) as service:
        waiting = service.start("250780000006")
        own_simulator.behave(refuse_credentials=True)
        try:
            eventually(lambda: service.http.get("/readyz").json()["gateway"]["status"] == "down")
            assert service.read(waiting["refid"])["status"] == "pending"
            refused = service.start()
            assert (refused["status"], refused["failure"]["code"]) == ("failed", "misconfigured")
            assert refused["failure"]["retcode"] == "600"
        finally:
            own_simulator.behave(refuse_credentials=False)
        assert service.read(waiting["refid"], wait=20)["status"] == "succeeded"


def test_a_gateway_that_cannot_be_reached_was_sent_nothing(
    tmp_path: Path, new_database: NewDatabase, simulator: Simulator
) -> None:
    """No connection at all: failed, `gateway_unreachable`, and the caller may try again."""
    nobody = {"GATEWAY_URL": f"http://127.0.0.1:{free_port()}/"}
    with run_service(tmp_path, new_database(), simulator, QUICK | nobody) as service:
        failure = service.start()["failure"]
        assert (failure["code"], failure["retryable"]) == ("gateway_unreachable", True)


def test_a_payment_of_another_gateway_is_never_asked_about(
    tmp_path: Path, new_database: NewDatabase, simulator: Simulator
) -> None:
    """After a move to another gateway the old one's payments rest; asking by hand is refused."""
    database = new_database()
    with run_service(tmp_path, database, simulator, QUICK) as service:
        refid = service.start("250780000006")["refid"]
    moved = {"GATEWAY_URL": simulator.url.replace("127.0.0.1", "localhost") + "/"}
    with run_service(tmp_path, database, simulator, QUICK | moved) as service:
        asked = service.http.post(f"/v1/payments/{refid}/check")
        assert (asked.status_code, asked.json()["code"]) == (409, "other_gateway")
        checks = (simulator.ledger(refid) or {})["checks"]
        service.read(refid, wait=3)
        assert (simulator.ledger(refid) or {})["checks"] == checks


def test_fault_09_time_runs_out_and_a_late_truth_is_still_taken(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """A payment expires on time, also while K-Pay is down, is looked at again, and still succeeds when it was paid."""
    database = new_database()
    with run_service(tmp_path, database, own_simulator, QUICK | {"EXPIRE_AFTER": "3"}) as service:
        late, silent = (service.start("250780000005")["refid"] for _ in range(2))
        assert service.read(late, wait=10)["status"] == "expired"
        assert service.events(late)[-1]["source"] == "clock"
        due = "SELECT next_check_at - now() BETWEEN '20 h' AND '28 h' AS good FROM payments WHERE refid = $1"
        assert eventually(lambda: query(database, due, silent)[0]["good"])
        own_simulator.settle(late, "01")
        assert eventually(lambda: service.read(late)["status"] == "succeeded")
        assert service.read(late)["needs_review"] is False
        cut_off = service.start("250780000005")["refid"]
        own_simulator.behave(down=True)
        try:
            assert service.read(cut_off, wait=15)["status"] == "expired"
        finally:
            own_simulator.behave(down=False)


def test_fault_46_a_clean_stop_lets_requests_finish(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """SIGTERM during slow calls: every caller gets its answer, and the exit code is 0."""
    answered: list[int] = []
    with (
        run_service(tmp_path, new_database(), own_simulator, QUICK) as service,
        service.client(service.key) as starter,
        service.client(service.key) as waiter,
    ):
        refid = service.start("250780000005")["refid"]
        own_simulator.behave(latency=1.5)
        try:
            calls = [
                threading.Thread(
                    target=lambda: answered.append(waiter.get(f"/v1/payments/{refid}?wait=50").status_code)
                ),
                threading.Thread(
                    target=lambda: answered.append(starter.post("/v1/payments", json=payment()).status_code)
                ),
            ]
            for call in calls:
                call.start()
            eventually(lambda: query(service.database_url, "SELECT FROM payments WHERE status = 'created'"))
            assert service.process.stop() == 0
        finally:
            own_simulator.behave(latency=0)
        for call in calls:
            call.join(10)
    assert sorted(answered) == [200, 201]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_worker_stops_cleanly(
    number: signal.Signals, tmp_path: Path, new_database: NewDatabase, simulator: Simulator
) -> None:
    """The worker alone ends with exit code 0 on either signal."""
    with (
        run_service(tmp_path, new_database(), simulator, QUICK, "--no-worker") as web,
        kpayd(tmp_path, web.env, "worker") as worker,
    ):
        eventually(lambda: "worker is up" in worker.words)
        worker.child.send_signal(number)
        assert worker.child.wait(20) == 0


def test_several_processes_serve_and_count_together(
    tmp_path: Path, new_database: NewDatabase, simulator: Simulator
) -> None:
    """`--workers 2`: payments end, and a scrape of either process tells of both."""
    with run_service(tmp_path, new_database(), simulator, QUICK, "--workers", "2") as service:
        answers(service.process, f"{service.url}/readyz")
        for _ in range(6):
            with service.client(service.key) as http:
                http.post("/v1/payments", json=payment()).raise_for_status()

        def told() -> bool:
            with service.client(None) as http:
                return 'kpayd_payments_total{pmethod="momo",status="succeeded"} 6.0' in http.get("/metrics").text

        assert eventually(told)
        assert service.process.stop() == 0


def test_fault_08_a_failure_that_a_postback_denies(
    tmp_path: Path, new_database: NewDatabase, own_simulator: Simulator
) -> None:
    """Paid after a failure, told by one postback while K-Pay cannot be asked: still found, as a late success."""
    with run_service(tmp_path, new_database(), own_simulator, QUICK) as service:
        refid = service.start("250780000001")["refid"]
        assert service.read(refid, wait=10)["status"] == "failed"
        own_simulator.settle(refid, "01", postback=False)
        own_simulator.behave(down=True)
        try:
            told = service.postback(refid, statusid="01", momtransactionid="77")
            assert told.json()["reply"] == "OK"
            eventually(lambda: service.http.get("/readyz").json()["gateway"]["status"] == "down", seconds=20)
        finally:
            own_simulator.behave(down=False)
        assert eventually(lambda: service.read(refid)["status"] == "succeeded", seconds=20)
        assert service.read(refid)["review_reasons"] == ["late_success"]


def test_the_time_of_another_gateways_payments_runs_out(
    tmp_path: Path, new_database: NewDatabase, simulator: Simulator
) -> None:
    """After a move to another gateway an old open payment is not asked about, and yet expires on time."""
    database, short = new_database(), {"EXPIRE_AFTER": "6"}
    with run_service(tmp_path, database, simulator, QUICK | short) as service:
        refid = service.start("250780000005")["refid"]
    moved = {"GATEWAY_URL": simulator.url.replace("127.0.0.1", "localhost") + "/"}
    with run_service(tmp_path, database, simulator, QUICK | moved) as service:
        checks = (simulator.ledger(refid) or {})["checks"]
        assert service.read(refid, wait=20)["status"] == "expired"
        assert (simulator.ledger(refid) or {})["checks"] == checks
