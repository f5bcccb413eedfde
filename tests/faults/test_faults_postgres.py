"""PostgreSQL fails at the one moment that counts, COMMIT, and PostgreSQL dies under load."""

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.conftest import QUICK
from tests.faults.conftest import Server, own_server
from tests.faults.standby import NEVER, kill_hard, load, misnumbered, started
from tests.proxy import Direction
from tests.support import (
    Service,
    Simulator,
    eventually,
    hush,
    kpayd,
    new_refid,
    payment,
    query,
    run_service,
)

BOUND = 8.0
"""Seconds within which everybody is answered on a loaded machine; by itself it is about two."""

CALLS = {"fdatasync": True, "pwrite64": False}
"""What fails in a backend that commits, and whether the commit is there after recovery.

With the first it is written, and not known to be on the disk; with the second it is not written."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a PostgreSQL that these tests break, and that is up again after each."""
    with own_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: Server, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service, which is never restarted; without a worker, so that only what a test does commits."""
    quick, folder = QUICK | {"GATEWAY_TIMEOUT": "1", "UNKNOWN_GRACE": "1"}, tmp_path_factory.mktemp("postgres")
    with run_service(folder, server.url, simulator, quick, "--no-worker") as service:
        yield service
        assert service.process.child.poll() is None


@pytest.fixture
def known(service: Service) -> tuple[str, str]:
    """Return a payment that is open for ever, with its tid; every pool that it went through has a connection then."""
    made = started(service)
    eventually(lambda: service.postback(made["refid"], statusid="03").status_code == 200)
    return made["refid"], made["tid"]


@contextmanager
def _failing(server: Server, call: str, folder: Path) -> Iterator[Path]:
    """Let each of the service's backends fail at its next `call` with EIO; yields where strace writes what it did."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("NOT SHOWN: strace is not installed, so that no disk error can be made")
    sql = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'kpayd%'"
    pids = [row["pid"] for row in query(server.direct, sql)]
    assert pids
    said = folder / "strace"
    what = ["-e", f"trace={call}", "-e", f"inject={call}:error=EIO:when=1", *(f"-p{pid}" for pid in pids)]
    with said.open("wb") as words:
        child = subprocess.Popen([strace, *what], stderr=words)
    try:
        eventually(lambda: said.read_text().count(" attached") == len(pids) or child.poll() is not None)
        if child.poll() is not None:
            pytest.skip(f"NOT SHOWN: strace may not trace here: {said.read_text()[:200]}")
        yield said
    finally:
        child.terminate()
        child.wait(10)


def _recovered(server: Server) -> bool:
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        return bool(query(server.direct, "SELECT 1"))
    return False


def _start(service: Service, refid: str) -> int:
    return service.http.post("/v1/payments", json=payment(NEVER, refid=refid)).status_code


def _checked(service: Service, refid: str) -> str:
    return str(service.http.post(f"/v1/payments/{refid}/check").raise_for_status().json()["status"])


def _requests(simulator: Simulator, refid: str) -> int:
    return int((simulator.ledger(refid) or {}).get("requests", 0))


def _stored(server: Server, refid: str) -> list[bytes]:
    sql = "SELECT body FROM bodies WHERE refid = $1 AND source = 'postback'"
    return [row["body"] for row in query(server.direct, sql, refid)]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("call", CALLS)
def test_fault_35_a_start_whose_commit_fails(
    call: str, server: Server, service: Service, simulator: Simulator, tmp_path: Path
) -> None:
    """A disk error on COMMIT is an unknown outcome: the row is looked for, and K-Pay is asked by whoever finds it."""
    refid = new_refid()
    with _failing(server, call, tmp_path) as said:
        status = _start(service, refid)
        assert "INJECTED" in said.read_text()
    eventually(lambda: _recovered(server))
    there = bool(query(server.direct, "SELECT FROM payments WHERE refid = $1", refid))
    assert there == CALLS[call]
    # 201 where the row was found again in time; 503 where it was not, and then nothing was sent.
    assert status in ((201, 503) if there else (503,))
    assert _requests(simulator, refid) == (1 if status == 201 else 0)

    again = eventually(lambda: (got := _start(service, refid)) != 503 and got)
    assert again == (200 if there else 201)
    sent = 1 if 201 in (status, again) else 0
    assert _requests(simulator, refid) == sent
    end = eventually(lambda: (status := _checked(service, refid)) != "created" and status)
    assert end == ("pending" if sent else "failed")  # not_received: K-Pay never heard of it
    assert misnumbered(server.direct) == []


@pytest.mark.parametrize("call", CALLS)
def test_fault_35_a_postback_whose_commit_fails(
    call: str, server: Server, service: Service, known: tuple[str, str], tmp_path: Path
) -> None:
    """A postback whose commit fails is not acknowledged, and the next one like it is, with one effect."""
    refid, tid = known
    body = json.dumps({"tid": tid, "refid": refid, "statusid": "03", "statusdesc": new_refid()}).encode()

    def post() -> int:
        return service.http.post(service.returl(refid), content=body).status_code

    with _failing(server, call, tmp_path) as said:
        status = post()
        assert "INJECTED" in said.read_text()
    eventually(lambda: _recovered(server))
    there = body in _stored(server, refid)
    assert there == CALLS[call]
    assert status == 503 or (status == 200 and there)
    assert eventually(lambda: post() == 200)
    assert _stored(server, refid).count(body) == 1
    assert misnumbered(server.direct) == []


@pytest.mark.usefixtures("known")
def test_fault_35_the_answer_to_a_starts_commit_is_lost(server: Server, service: Service, simulator: Simulator) -> None:
    """A start whose commit succeeded, and nobody could say so, is found again and goes on: 201, K-Pay asked once."""
    was_cut = threading.Event()

    def cut(direction: Direction, chunk: bytes) -> None:
        if direction == "answer" and b"COMMIT\0" in chunk and not was_cut.is_set():
            was_cut.set()
            raise ConnectionResetError

    refid = new_refid()
    server.proxy.watch = cut
    status = _start(service, refid)
    server.proxy.watch = None
    assert was_cut.is_set()
    assert query(server.direct, "SELECT FROM payments WHERE refid = $1", refid)
    assert (status, _requests(simulator, refid)) == (201, 1)
    assert (_start(service, refid), _requests(simulator, refid)) == (200, 1)
    assert service.read(refid)["status"] == "pending"


def test_fault_35_the_answer_to_a_postbacks_commit_is_lost(
    server: Server, service: Service, known: tuple[str, str]
) -> None:
    """A postback that nobody could confirm as stored is not acknowledged; the next one like it is, with one effect."""
    refid, tid = known
    body = json.dumps({"tid": tid, "refid": refid, "statusid": "03", "statusdesc": new_refid()}).encode()
    seen, was_cut = False, threading.Event()

    def cut(direction: Direction, chunk: bytes) -> None:
        nonlocal seen
        seen = seen or (direction == "request" and body in chunk)
        if seen and direction == "answer" and not was_cut.is_set():
            was_cut.set()
            raise ConnectionResetError

    server.proxy.watch = cut
    status = service.http.post(service.returl(refid), content=body).status_code
    server.proxy.watch = None
    assert was_cut.is_set()
    assert status == 503
    assert eventually(lambda: service.http.post(service.returl(refid), content=body).status_code == 200)
    assert _stored(server, refid).count(body) == 1
    assert misnumbered(server.direct) == []


def test_fault_38_kill_under_load(server: Server, service: Service, simulator: Simulator, tmp_path: Path) -> None:
    """PostgreSQL killed with -9 under load loses nothing acknowledged, and the service goes on by itself afterwards."""
    with kpayd(tmp_path, service.env, "worker") as worker:
        eventually(lambda: "worker is up" in worker.words)
        _kill_under_load(server, service, simulator)
        # The worker has come back, too: no postback tells of this one.
        refid = started(service, "250780000010")["refid"]
        assert service.read(refid, wait=20)["status"] == "succeeded"
        assert worker.child.poll() is None
    hush(service)


def _kill_under_load(server: Server, service: Service, simulator: Simulator) -> None:
    work = load(service, 2)
    with work.running(3):
        work.more(150)
        kill_hard(server.server)
        turned_away = work.turned_away
        eventually(lambda: work.turned_away >= turned_away + 20, every=0.02)
        assert httpx2.get(f"{service.url}/healthz", trust_env=False).status_code == 200
        assert httpx2.get(f"{service.url}/readyz", trust_env=False).status_code == 503
        server.server.start()
        work.more(50)
    assert set(work.started.values()) | set(work.told.values()) <= {200, 201, 503}
    assert work.lost(server.direct) == (set(), set())
    assert misnumbered(server.direct) == []
    assert work.slowest < BOUND
    assert work.sent_though_turned_away(simulator) == []
    for refid in [refid for refid, status in work.started.items() if status == 503][:5]:
        assert _start(service, refid) in {200, 201}
        assert _requests(simulator, refid) <= 1
