"""Disks that are full: the one with the data, and the one with the write-ahead log."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tests.conftest import QUICK
from tests.faults.conftest import Server, own_server
from tests.faults.standby import NEVER, data_of, misnumbered
from tests.support import Service, Simulator, eventually, new_refid, payment, query, run_service

BOUND = 8.0
"""Seconds within which everybody is answered on a loaded machine; by itself it is about two."""

DATA_MIB, WAL_MIB = 32, 80
_MOUNT, _UMOUNT = (shutil.which(name) or f"/bin/{name}" for name in ("mount", "umount"))


@dataclass(frozen=True)
class Disk:
    """A small file system of its own."""

    path: Path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no byte free for as long as the block lasts."""
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def _disk(mebibytes: int) -> Iterator[Disk]:
    """Mount a small disk that PostgreSQL may write to."""
    if os.geteuid() != 0:
        pytest.skip("NOT SHOWN: only root can mount a small disk and fill it up")
    with tempfile.TemporaryDirectory(prefix="kpayd-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        mount: list[str | Path] = [_MOUNT, "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", "tmpfs", folder]
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"NOT SHOWN: a small disk cannot be mounted here: {done.stderr.strip()}")
        try:
            yield Disk(folder)
        finally:
            subprocess.run([_UMOUNT, folder], check=True)


@dataclass(frozen=True)
class Disks:
    """A server whose data and whose write-ahead log lie on a small disk each."""

    server: Server
    data: Disk
    wal: Disk


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    """Run a PostgreSQL with its two disks."""
    with ExitStack() as stack:
        data, wal = stack.enter_context(_disk(DATA_MIB)), stack.enter_context(_disk(WAL_MIB))
        server = stack.enter_context(own_server("wal_recycle=off", "min_wal_size=32MB"))
        owner = data_of(server.server).stat()
        for each in (data, wal):
            (each.path / "own").mkdir(mode=0o700)
            os.chown(each.path / "own", owner.st_uid, owner.st_gid)
        query(server.server.url, f"CREATE TABLESPACE small LOCATION '{data.path / 'own'}'")
        query(server.server.url, "ALTER DATABASE kpayd SET TABLESPACE small")
        log = data_of(server.server) / "pg_wal"
        server.server.stop()
        shutil.copytree(log, wal.path / "own", dirs_exist_ok=True)
        for path in (wal.path / "own").rglob("*"):
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.rmtree(log)
        log.symlink_to(wal.path / "own")
        server.server.start()
        yield Disks(server, data, wal)


@pytest.fixture(scope="module")
def service(disks: Disks, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run one service, which is never restarted."""
    schedule = {"CHECK_SCHEDULE": "0.5,1,600"}
    with run_service(tmp_path_factory.mktemp("disks"), disks.server.url, simulator, QUICK | schedule) as service:
        yield service
        assert service.process.child.poll() is None


class Callers:
    """Callers one after another, what they were told, and how long it took at most."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.target = service.start(NEVER)
        self.started: dict[str, int] = {}
        self.told: dict[bytes, int] = {}
        self.slowest = 0.0

    def _timed(self, path: str, **content: object) -> httpx2.Response:
        before = time.monotonic()
        answer = self.service.http.post(path, **content)  # type: ignore[arg-type]
        self.slowest = max(self.slowest, time.monotonic() - before)
        assert answer.status_code in (200, 201, 503)
        assert (answer.status_code == 503) == ("retry-after" in answer.headers)
        return answer

    def start(self) -> int:
        """Start a payment."""
        body = payment(NEVER, refid=new_refid(), metadata={"filling": "x" * 500})
        status = self._timed("/v1/payments", json=body).status_code
        self.started[body["refid"]] = status
        return status

    def post(self) -> int:
        """Send a postback that no compression makes smaller."""
        tid, refid = self.target["tid"], self.target["refid"]
        body = f'{{"tid": "{tid}", "refid": "{refid}", "statusid": "03", "x": "{os.urandom(2_000).hex()}"}}'.encode()
        self.told[body] = self._timed(self.service.returl(refid), content=body).status_code
        return self.told[body]

    def check(self, server: Server, simulator: Simulator) -> None:
        """Fail unless what was acknowledged is there, and what was not was not sent."""
        there = {row["refid"] for row in query(server.direct, "SELECT refid FROM payments")}
        assert {refid for refid, status in self.started.items() if status == 201} <= there
        stored = query(server.direct, "SELECT body FROM bodies WHERE source = 'postback'")
        assert {body for body, status in self.told.items() if status == 200} <= {row["body"] for row in stored}
        for refid, status in self.started.items():
            assert (simulator.ledger(refid) is None) == (status == 503)
        assert misnumbered(server.direct) == []
        assert self.slowest < BOUND


def test_fault_36_data_disk_full(disks: Disks, service: Service, simulator: Simulator) -> None:
    """With the data disk full, starts and postbacks are 503, reads go on, and with space all goes on by itself."""
    callers = Callers(service)
    with disks.data.full():
        assert eventually(lambda: callers.start() == 503, seconds=30, every=0)
        assert eventually(lambda: callers.post() == 503, seconds=30, every=0)
        assert [callers.start() for _ in range(3)] == [503] * 3
        assert [callers.post() for _ in range(3)] == [503] * 3
        assert service.read(callers.target["refid"])["status"] == "pending"
        assert service.http.get("/v1/payments").status_code == 200
        assert service.http.get("/readyz").status_code == 200
        assert "No space left on device" in disks.server.server.log.read_text()
    assert eventually(lambda: callers.start() == 201)
    assert eventually(lambda: callers.post() == 200)
    callers.check(disks.server, simulator)
    # What K-Pay had answered and found no room is asked for again.
    unknown = "SELECT FROM payments WHERE status = 'created'"
    eventually(lambda: not query(disks.server.direct, unknown))


def test_fault_37_wal_disk_full(disks: Disks, service: Service, simulator: Simulator) -> None:
    """With the log's disk full PostgreSQL stops: all is 503 until there is space and PostgreSQL is started again."""
    callers, server = Callers(service), disks.server.server
    with disks.wal.full():

        def stopped() -> bool:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                query(server.url, "SELECT pg_switch_wal()")
            return callers.start() == 503

        assert eventually(stopped, seconds=60, every=0)
        eventually(lambda: not server.socket.exists())  # its recovery has found no space either, and it has ended
        assert "PANIC" in server.log.read_text()
        assert [callers.start(), callers.post()] == [503, 503]
        assert service.http.get(f"/v1/payments/{callers.target['refid']}").status_code == 503
        assert service.http.get("/healthz").status_code == 200
    server.start()
    assert eventually(lambda: callers.start() == 201)
    assert eventually(lambda: callers.post() == 200)
    callers.check(disks.server, simulator)
