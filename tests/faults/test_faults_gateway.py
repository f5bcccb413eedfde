"""The way to K-Pay fails: answers get lost, dribble in or never come; K-Pay is down, or is somebody else."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import httpx2
import pytest

from app.breaker import FAILURES
from app.reconcile import LOOK_EVERY
from tests.conftest import QUICK
from tests.proxy import Direction, Fault, Proxy, running_proxy
from tests.support import Service, Simulator, eventually, metric, new_refid, query, run_service, run_simulator

NewDatabase = Callable[[], str]

PAYS, DECLINES, PENDING = "250780000000", "250780000001", "250780000005"
PAYS_WITHOUT_A_POSTBACK = "250780000010"

CALLS = 'kpayd_gateway_calls_total{{action="{}",outcome="{}"}}'
CONCURRENCY = 8
BACKLOG = 200


@dataclass(frozen=True)
class Road:
    """A service, a K-Pay, and the proxy between the two."""

    service: Service
    simulator: Simulator
    proxy: Proxy

    @contextmanager
    def under(self, fault: Fault, amount: float = 0.0) -> Iterator[None]:
        """Let a fault rule until the block ends; what it holds is let go then."""
        self.proxy.set(fault, amount)
        self.proxy.cut()  # a check may have left a connection behind that a fault of new ones does not touch
        try:
            yield
        finally:
            self.proxy.set(Fault.NONE)
            self.proxy.cut()


@contextmanager
def road(folder: Path, database: str, more: dict[str, str]) -> Iterator[Road]:
    """Run a service that reaches a K-Pay of its own by a proxy."""
    with run_simulator(folder) as simulator:
        _, _, port = simulator.url.rpartition(":")
        with running_proxy(("127.0.0.1", int(port))) as proxy:
            way = {"GATEWAY_URL": f"{proxy.url}/"}
            with run_service(folder, database, simulator, QUICK | more | way) as service:
                yield Road(service, simulator, proxy)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase) -> Iterator[Road]:
    """Run a road for all tests that leave it as they found it."""
    with road(tmp_path_factory.mktemp("road"), new_database(), {}) as quick:
        yield quick


def after_doubt(service: Service, refid: str) -> float:
    """Return how many seconds after its outcome had become unknown a payment became final (database time)."""
    sql = "SELECT extract(epoch FROM final_at - doubt_from)::float AS seconds FROM payments WHERE refid = $1"
    return float(query(service.database_url, sql, refid)[0]["seconds"])


def test_fault_24_a_request_whose_answer_is_lost_is_not_sent_again(quick: Road) -> None:
    """A request whose answer is lost, held or cut is `created`, never sent again, and ends as K-Pay's ledger says."""
    ends = {}
    for fault, amount in ((Fault.LOSE_ANSWER, 0), (Fault.HOLD_ANSWER, 0), (Fault.TRUNCATE, 0), (Fault.TRUNCATE, 150)):
        for number, end in ((PAYS, "succeeded"), (DECLINES, "failed")):
            with quick.under(fault, amount):
                started = quick.service.start(number)
                assert started["status"] == "created", fault
            ends[started["refid"]] = (fault, end, "01" if end == "succeeded" else "02")
    for refid, (fault, end, statusid) in ends.items():
        ledger = quick.simulator.ledger(refid)
        assert ledger is not None, fault
        after = quick.service.read(refid, wait=30)
        assert (after["status"], after["statusid"], ledger["statusid"]) == (end, statusid, statusid), fault
        assert (after["tid"], ledger["requests"]) == (ledger["tid"], 1), fault


def test_fault_24_a_request_that_got_lost_is_believed_lost_after_the_grace(quick: Road) -> None:
    """A request that was lost on a standing connection is `created`; `not_received` comes after the grace only."""
    refids = {}
    for fault in (Fault.LOSE_REQUEST, Fault.BLACKHOLE):
        with quick.under(fault):
            started = quick.service.start(PAYS)
            assert started["status"] == "created", fault
        refids[started["refid"]] = fault
    for refid, fault in refids.items():
        after = quick.service.read(refid, wait=30)
        assert (after["status"], after["failure"] and after["failure"]["code"]) == ("failed", "not_received"), fault
        assert after_doubt(quick.service, refid) >= float(QUICK["UNKNOWN_GRACE"])
        assert quick.simulator.requests(refid) == 0, fault


def test_fault_24_a_connection_that_is_reset_at_once_sends_nothing(quick: Road) -> None:
    """Reset at connecting nothing was sent, reset after that it is in doubt: both end `failed`, and K-Pay got none."""
    with quick.under(Fault.RESET):
        started = quick.service.start(PAYS)
    code = {"failed": "gateway_unreachable", "created": "not_received"}[started["status"]]
    after = quick.service.read(started["refid"], wait=30)
    assert (after["status"], after["failure"]["code"]) == ("failed", code)
    assert quick.simulator.requests(started["refid"]) == 0


def test_fault_24_a_refused_connection_is_tried_again_and_sends_nothing(quick: Road) -> None:
    """A refused connection is tried again for a moment; then nothing was sent, and nothing will be."""
    tried, refid = CALLS.format("pay", "not_sent"), new_refid()
    before = metric(quick.service, tried)
    with quick.under(Fault.REFUSE):
        started = quick.service.start(PAYS, refid=refid)
    assert started["status"] == "failed"
    assert (started["failure"]["code"], started["failure"]["retryable"]) == ("gateway_unreachable", True)
    assert metric(quick.service, tried) - before >= 2
    again = quick.service.http.post("/v1/payments", json=_same(started))
    assert (again.status_code, again.json()["status"]) == (200, "failed")
    assert quick.simulator.requests(refid) == 0


def _same(started: dict[str, object]) -> dict[str, object]:
    names = ("refid", "amount", "pmethod", "msisdn", "email", "details", "cname", "redirecturl")
    return {name: started[name] for name in names}


def test_fault_25_an_answer_that_dribbles_in_meets_the_deadline_of_the_whole_call(quick: Road) -> None:
    """An answer that comes byte by byte is cut off when the time of the whole call is up, and K-Pay asked later."""
    checks = CALLS.format("checkstatus", "in_doubt")
    before = metric(quick.service, checks)
    # Over 250 bytes, each long before any time-out of a single read: 15 s or more in all.
    with quick.under(Fault.DRIBBLE, 0.06):
        began = time.monotonic()
        started = quick.service.start(PAYS)
        took = time.monotonic() - began
        eventually(lambda: metric(quick.service, checks) > before)
    assert started["status"] == "created"
    assert float(QUICK["GATEWAY_TIMEOUT"]) * 0.9 < took < 8
    assert quick.service.read(started["refid"], wait=30)["status"] == "succeeded"
    assert quick.simulator.requests(started["refid"]) == 1


class Meter:
    """What a proxy has seen of checkstatus: when each question came, and how many were unanswered at most."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.most = 0
        self._open = 0
        self._lock = Lock()

    def __call__(self, direction: Direction, chunk: bytes) -> None:
        """Count one chunk: a question's body, or the head of an answer."""
        with self._lock:
            if direction == "request" and b'"checkstatus"' in chunk:
                self.asked.append(time.monotonic())
                self._open += 1
                self.most = max(self.most, self._open)
            elif direction == "answer" and chunk.startswith(b"HTTP/1.1 "):
                self._open -= 1

    @property
    def gaps(self) -> Sequence[float]:
        """The seconds between one question and the next."""
        return [later - earlier for earlier, later in pairwise(self.asked)]


def test_fault_31_a_backlog_drains_without_a_stampede(tmp_path: Path, new_database: NewDatabase) -> None:
    """While K-Pay is down only probes go out, ever more rarely; then hundreds of checks go out a few at a time."""
    more = {"CHECK_CONCURRENCY": str(CONCURRENCY), "CHECK_SCHEDULE": "3600,2"}
    with road(tmp_path, new_database(), more) as way:
        for _ in range(BACKLOG):
            assert way.service.start(PAYS_WITHOUT_A_POSTBACK)["status"] == "pending"
        meter = Meter()
        way.simulator.behave(down=True)
        way.proxy.watch = meter
        query(way.service.database_url, "UPDATE payments SET next_check_at = now()")
        ready = eventually(
            lambda: (now := way.service.http.get("/readyz")).json()["gateway"]["status"] == "down" and now
        )
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        # A claim's worth was under way when it opened, and what had taken the places of the first that failed; then
        # there are pauses of 1 and 2 s, a tenth less at most.
        eventually(lambda: max(meter.gaps) > 1.7, seconds=40)
        first = len(meter.asked)
        assert first <= CONCURRENCY + FAILURES + 2
        way.simulator.behave(down=False, latency=0.1)
        paid = "SELECT count(*) AS paid FROM payments WHERE status = 'succeeded'"
        eventually(lambda: query(way.service.database_url, paid)[0]["paid"] == BACKLOG, seconds=60)
        assert CONCURRENCY / 2 <= meter.most <= CONCURRENCY
        assert {item["checks"] for item in _ledger(way.simulator)} == {1}
        assert way.service.http.get("/readyz").json()["gateway"]["status"] == "ok"
        # Whoever has more to ask does not rest between two claims.
        assert sum(gap > LOOK_EVERY for gap in meter.gaps[first:]) < BACKLOG / CONCURRENCY / 3


def _ledger(simulator: Simulator) -> Sequence[dict[str, object]]:
    items: Sequence[dict[str, object]] = simulator.http.get("/_simulator/payments").json()["items"]
    return items


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate for 127.0.0.1 that nobody has signed, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing: that TLS is verified was NOT tested")
    pem = tmp_path / "own.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(pem), "-out", f"{pem}.crt"]
    subprocess.run([openssl, "req", *kind, *names, *files], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + Path(f"{pem}.crt").read_bytes())
    return pem


class _Pretender(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as it was declared
        """Say nothing of clients that hang up."""


@contextmanager
def pretending(certificate: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that says "paid" to whoever believes its certificate; yield its URL and all that it has read."""
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"statusid":"01"}')

        def log_message(self, *_: object) -> None:
            """Say nothing of what came."""

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with _Pretender(("127.0.0.1", 0), Handler) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}/", heard
        finally:
            server.shutdown()
            thread.join(5)


def test_fault_32_a_certificate_that_nobody_signed_is_refused(
    tmp_path: Path, new_database: NewDatabase, quick: Road, certificate: Path
) -> None:
    """A server that cannot prove to be K-Pay gets neither a request nor the credentials: nothing was sent."""
    with pretending(certificate) as (url, heard):
        with run_service(tmp_path, new_database(), quick.simulator, QUICK | {"GATEWAY_URL": url}) as service:
            started = service.start(PAYS)
        assert (started["status"], started["failure"]["code"]) == ("failed", "gateway_unreachable")
        assert heard == []
        # It would have answered whoever believes it.
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx2.post(url, content=b"{}", verify=trusting, trust_env=False).json() == {"statusid": "01"}
        assert heard == [b"{}"]
