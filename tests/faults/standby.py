"""What the tests of a lost PostgreSQL share: a standby, and a load that remembers all it was told."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from app.dev.postgres import EmbeddedPostgres, binaries, running
from tests.faults.conftest import Server
from tests.proxy import Proxy, running_proxy
from tests.support import Json, Service, Simulator, eventually, new_refid, payment, query

NEVER = "250780000005"
"""The number of a payer who never acts: no postback comes but the test's own."""

_MOST = 5_000
_PAUSE = 0.01


def started(service: Service, number: str = NEVER) -> Json:
    """Start a payment as soon as the database is there."""

    def answer() -> httpx2.Response | None:
        got = service.http.post("/v1/payments", json=payment(number))
        return got if got.status_code == httpx2.codes.CREATED else None

    body: Json = eventually(answer).json()
    return body


@dataclass
class Load:
    """Callers and a K-Pay that go on through every fault; what each was told is kept."""

    service: Service
    targets: Sequence[tuple[str, str]]
    """Payments that postbacks come for, each with its tid."""
    started: dict[str, int] = field(default_factory=dict)
    """The answer to each start, by refid."""
    told: dict[bytes, int] = field(default_factory=dict)
    """The answer to each postback, by its body."""
    slowest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def acknowledged(self) -> int:
        """How much has been acknowledged so far."""
        return self._count(200, 201)

    @property
    def turned_away(self) -> int:
        """How much has been answered 503 so far."""
        return self._count(503)

    def _count(self, *statuses: int) -> int:
        return sum(each in statuses for each in [*list(self.started.values()), *list(self.told.values())])

    def more(self, number: int) -> None:
        """Wait until so much more has been acknowledged."""
        goal = self.acknowledged + number
        eventually(lambda: self.acknowledged >= goal, seconds=30, every=0.02)

    def _start(self, http: httpx2.Client) -> None:
        body = payment(NEVER, refid=new_refid())
        self.started[body["refid"]] = http.post("/v1/payments", json=body).status_code

    def _post(self, http: httpx2.Client, refid: str, tid: str) -> None:
        words = {"tid": tid, "refid": refid, "momtransactionid": "", "statusid": "03", "statusdesc": new_refid()}
        body = json.dumps(words).encode()
        self.told[body] = http.post(self.service.returl(refid), content=body).status_code

    def _go_on(self, target: tuple[str, str] | None) -> None:
        with self.service.client(self.service.key) as http:
            for _ in range(_MOST):
                if self._over.is_set():
                    return
                before = time.monotonic()
                if target is None:
                    self._start(http)
                else:
                    self._post(http, *target)
                self.slowest = max(self.slowest, time.monotonic() - before)
                self._over.wait(_PAUSE)

    @contextmanager
    def running(self, callers: int) -> Iterator[None]:
        """Keep `callers` starting payments, and one sender of postbacks for each target, for as long as the block."""
        work: list[tuple[str, str] | None] = [None] * callers + list(self.targets)
        threads = [threading.Thread(target=self._go_on, args=(target,)) for target in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def lost(self, database: str) -> tuple[set[str], set[bytes]]:
        """Return the payments and the postbacks that were acknowledged and are not in `database`."""
        refids = {refid for refid, status in self.started.items() if status in (200, 201)}
        bodies = {body for body, status in self.told.items() if status == 200}
        rows = query(database, "SELECT refid FROM payments")
        stored = query(database, "SELECT body FROM bodies WHERE source = 'postback'")
        return refids - {row["refid"] for row in rows}, bodies - {row["body"] for row in stored}

    def sent_though_turned_away(self, simulator: Simulator) -> list[str]:
        """Return the payments that were answered 503 and that K-Pay heard of all the same."""
        known = {row["refid"] for row in simulator.http.get("/_simulator/payments").json()["items"]}
        return [refid for refid, status in self.started.items() if status == 503 and refid in known]


def load(service: Service, targets: int) -> Load:
    """Return a load, with as many payments that postbacks will come for."""
    made = [started(service) for _ in range(targets)]
    return Load(service, [(each["refid"], each["tid"]) for each in made])


def misnumbered(database: str) -> list[str]:
    """Return the payments whose timeline has a gap, or that do not show each postback there is exactly once."""
    sql = """
        SELECT p.refid FROM payments AS p,
        LATERAL (SELECT count(*) AS number, max(seq) AS last, count(*) FILTER (WHERE source = 'postback') AS postbacks
                 FROM events AS e WHERE e.refid = p.refid) AS timeline,
        LATERAL (SELECT count(*) AS number FROM bodies AS e WHERE e.refid = p.refid AND source = 'postback') AS stored
        WHERE (timeline.number, timeline.last, timeline.postbacks) <> (p.last_seq, p.last_seq, stored.number)
    """
    return [row["refid"] for row in query(database, sql)]


def data_of(server: EmbeddedPostgres) -> Path:
    """Return where a running server keeps its data."""
    return Path(query(server.url, "SHOW data_directory")[0][0])


def kill_hard(server: EmbeddedPostgres) -> Path:
    """Kill a server and every process of it with -9, as a machine that stops; return its lock file, which stays."""
    lock = data_of(server) / "postmaster.pid"
    pid = int(lock.read_text().split()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        with suppress(ProcessLookupError):  # a backend may have ended meanwhile
            os.kill(each, signal.SIGKILL)
    return lock


@dataclass(frozen=True)
class Standby:
    """A server that follows another one, and the link between them."""

    server: EmbeddedPostgres
    link: Proxy
    primary: Server

    def has_all(self) -> bool:
        """Whether the standby has, and has flushed, all that the primary has."""
        sql = "SELECT flush_lsn >= pg_current_wal_flush_lsn() AS done FROM pg_stat_replication"
        return any(row["done"] for row in query(self.primary.server.url, sql))

    def promote(self) -> None:
        """Kill the primary and let the standby take writes; the database's address leads to nobody then."""
        kill_hard(self.primary.server).unlink()
        self.link.cut()
        assert query(self.server.url, "SELECT pg_promote(true, 30)")[0][0]
        self.primary.server = self.server

    def take_over(self) -> None:
        """Promote, and move the database's address to what was the standby."""
        self.promote()
        self.primary.proxy.move(str(self.server.socket))
        self.primary.proxy.cut()


def _base_backup(primary: Server, link: Proxy, data: Path) -> None:
    """Copy a server; the copy will follow it through `link`."""
    owner = data_of(primary.server).stat()
    data.mkdir(mode=0o700)
    os.chown(data, owner.st_uid, owner.st_gid)
    source = f"host=127.0.0.1 port={link.port} user=postgres"
    subprocess.run(
        [binaries() / "pg_basebackup", "-d", source, "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
        user=owner.st_uid,
        group=owner.st_gid,
        timeout=60,
    )
    for lock in data.glob(".s.PGSQL.*"):  # the primary's: its socket lies among its data
        lock.unlink()


@contextmanager
def running_standby(primary: Server, *, synchronous: bool) -> Iterator[Standby]:
    """Run a standby of `primary` that has all of it; `synchronous` makes every commit wait for it from then on."""
    with tempfile.TemporaryDirectory(prefix="kpayd-tests-") as name, running_proxy(str(primary.server.socket)) as link:
        folder = Path(name)
        folder.chmod(0o711)
        _base_backup(primary, link, folder / "data")
        with running(folder / "data") as server:
            standby = Standby(server, link, primary)
            eventually(standby.has_all)
            if synchronous:
                query(primary.server.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
                query(primary.server.url, "SELECT pg_reload_conf()")
                sql = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
                eventually(lambda: query(primary.server.url, sql))
            yield standby
