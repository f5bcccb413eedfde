"""Many processes ask about the same payments: leases that overlap, run out, and a replica whose clock is wrong."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.dev.laptop import free_port
from tests.conftest import QUICK
from tests.proxy import Direction, Proxy, running_proxy
from tests.support import (
    Json,
    Process,
    Service,
    Simulator,
    answers,
    eventually,
    kpayd,
    query,
    run_service,
    run_simulator,
)

NewDatabase = Callable[[], str]

PAYS, NEVER_TAKEN_IN, NEVER_PAYS = "250780000000", "250780000033", "250780000005"
PAID_AND_NOT_TOLD = "250780000011"
DUE = 250
AHEAD = timedelta(days=3)
FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


@dataclass(frozen=True)
class Fleet:
    """A web that checks nothing by itself, two workers, a K-Pay whose payers are played by hand, a proxy before it."""

    web: Service
    workers: tuple[Process, Process]
    simulator: Simulator
    proxy: Proxy

    def make_due(self, *refids: str) -> None:
        """Have K-Pay asked about some payments, by whichever worker claims them first."""
        query(self.web.database_url, "UPDATE payments SET next_check_at = now() WHERE refid = any($1)", refids)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase) -> Iterator[Fleet]:
    """Run a fleet. Nothing is due by itself; a call may take long, so that a frozen worker's is not over."""
    folder, rare = tmp_path_factory.mktemp("fleet"), {"CHECK_SCHEDULE": "3600", "GATEWAY_TIMEOUT": "50"}
    with run_simulator(folder, payer_delay=3600) as simulator:
        _, _, port = simulator.url.rpartition(":")
        with running_proxy(("127.0.0.1", int(port))) as proxy:
            way = QUICK | rare | {"GATEWAY_URL": f"{proxy.url}/"}
            with (
                run_service(folder, new_database(), simulator, way, "--no-worker") as web,
                kpayd(folder, web.env, "worker") as one,
                kpayd(folder, web.env, "worker") as other,
            ):
                for worker in (one, other):
                    eventually(lambda worker=worker: "worker is up" in worker.words, seconds=60)  # type: ignore[misc]
                yield Fleet(web, (one, other), simulator, proxy)


def entries(worker: Process) -> list[Json]:
    """Return what a process has logged."""
    return [json.loads(line) for line in worker.words.splitlines() if line.startswith("{")]


def test_fault_43_each_due_payment_is_asked_about_by_one_worker(fleet: Fleet) -> None:
    """Two workers over hundreds of due payments ask K-Pay about each of them once, and both of them work."""
    refids = [fleet.web.start(PAID_AND_NOT_TOLD)["refid"] for _ in range(DUE)]
    fleet.make_due(*refids)
    open_ = "SELECT count(*) AS left FROM payments WHERE status = 'pending'"
    eventually(lambda: query(fleet.web.database_url, open_)[0]["left"] == 0, seconds=60, every=0.3)
    assert [(fleet.simulator.ledger(refid) or {})["checks"] for refid in refids] == [1] * DUE
    done = [
        [entry["refid"] for entry in entries(worker) if entry.get("status") == "succeeded"] for worker in fleet.workers
    ]
    assert all(done)
    assert sorted([*done[0], *done[1]]) == sorted(refids)
    changes = "SELECT count(*) AS n FROM events WHERE type = 'payment.succeeded'"
    assert query(fleet.web.database_url, changes)[0]["n"] == DUE


@contextmanager
def frozen(worker: Process) -> Iterator[None]:
    """Stop a process in the middle of whatever it does, until the block ends."""
    worker.child.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.child.send_signal(signal.SIGCONT)


def freeze_at_answer(worker: Process) -> Callable[[Direction, bytes], None]:
    """Return a watch that stops a process when the first answer is on its way to it."""
    seen = False

    def watch(direction: Direction, _: bytes) -> None:
        nonlocal seen
        if direction == "answer" and not seen:
            seen = True
            os.kill(worker.child.pid, signal.SIGSTOP)

    return watch


def is_stopped(worker: Process) -> bool:
    """Whether a process is stopped by a signal."""
    return Path(f"/proc/{worker.child.pid}/stat").read_text().rpartition(") ")[2].startswith("T")


@pytest.mark.parametrize(("statusid", "status"), [("01", "succeeded"), ("02", "failed")])
def test_fault_44_an_answer_that_outlived_its_lease_changes_nothing(fleet: Fleet, statusid: str, status: str) -> None:
    """An answer that comes when its lease has run out and another worker has brought the end changes nothing."""
    slow, quick = fleet.workers
    refid = fleet.web.start(PAYS)["refid"]
    with frozen(slow):  # whatever the case, the thaw comes
        with frozen(quick):
            slow.child.send_signal(signal.SIGCONT)
            fleet.proxy.watch = freeze_at_answer(slow)
            fleet.make_due(refid)
            eventually(lambda: is_stopped(slow))
            fleet.proxy.watch = None
        # "Pending" lies in the frozen worker's socket. Nobody else asks as long as its lease lasts.
        leased = "SELECT leased_until > now() AS leased FROM payments WHERE refid = $1"
        assert query(fleet.web.database_url, leased, refid)[0]["leased"]
        fleet.simulator.settle(refid, statusid, postback=False)
        over = "UPDATE payments SET leased_until = now() - interval '1 s' WHERE refid = $1"
        query(fleet.web.database_url, over, refid)
        end = eventually(lambda: (now := fleet.web.read(refid))["status"] != "pending" and now)
        assert end["status"] == status
        assert (fleet.simulator.ledger(refid) or {})["checks"] == 2
    late = eventually(lambda: (items := fleet.web.events(refid))[-1]["statusid"] == "03" and items)
    assert [(item["type"], item["status"]) for item in late[-2:]] == [
        (f"payment.{status}", status),
        ("evidence", status),
    ]
    after = fleet.web.read(refid)
    changed = {name for name, value in after.items() if value != end[name]}
    assert changed <= {"updated_at", "checked_at"}
    rest = "SELECT next_check_at, leased_until, recheck FROM payments WHERE refid = $1"
    assert tuple(query(fleet.web.database_url, rest, refid)[0]) == (None, None, False)


@pytest.fixture
def faked_clock() -> Mapping[str, str]:
    """Give the environment of a process whose clock is three days ahead; time that passes is not faked."""
    library = next((path for pattern in FAKETIME for path in sorted(Path("/").glob(pattern[1:]))), None)
    if library is None:
        pytest.skip("libfaketime is missing (Debian: faketime): a replica with a wrong clock was NOT tested")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"+{AHEAD.days}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        # Files keep their times, or Python may think its compiled modules out of date and leave worse ones behind.
        "NO_FAKE_STAT": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextmanager
def second_replica(folder: Path, first: Service, more: Mapping[str, str]) -> Iterator[Service]:
    """Run another service with the same settings over the same database."""
    port = free_port()
    with kpayd(folder, {**first.env, **more}, "serve", "--port", str(port)) as process:
        answers(process, f"http://127.0.0.1:{port}/healthz")
        replica = Service(process, f"http://127.0.0.1:{port}", first.database_url, first.env)
        with replica.http:
            yield replica


def test_fault_45_a_replica_with_a_wrong_clock_does_no_harm(
    tmp_path: Path, new_database: NewDatabase, simulator: Simulator, faked_clock: Mapping[str, str]
) -> None:
    """A replica whose clock is three days ahead makes nothing expire or fail early, and no timeline crooked."""
    database = new_database()
    with (
        run_service(tmp_path, database, simulator, QUICK) as straight,
        second_replica(tmp_path, straight, faked_clock) as ahead,
    ):
        begun = query(database, "SELECT now() AS now")[0]["now"]
        asked = {}
        for name, replica in (("straight", straight), ("ahead", ahead)):
            for number in (PAYS, NEVER_TAKEN_IN, NEVER_PAYS):
                asked[replica.start(number)["refid"]] = (name, number)
        for refid, (name, number) in asked.items():
            for replica in (straight, ahead):
                replica.http.post(f"/v1/payments/{refid}/check").raise_for_status()
            end = straight.read(refid, wait=0 if number == NEVER_PAYS else 20)
            assert end["status"] == {PAYS: "succeeded", NEVER_TAKEN_IN: "failed", NEVER_PAYS: "pending"}[number], name
            items = straight.events(refid)
            times = [datetime.fromisoformat(item["created_at"]) for item in items]
            assert times == sorted(times), items
            now = query(database, "SELECT now() AS now")[0]["now"]
            assert begun <= datetime.fromisoformat(end["created_at"]) <= times[0]
            assert times[-1] <= now
        grace = "SELECT min(final_at - doubt_from) AS grace FROM payments WHERE failure_code = 'not_received'"
        assert query(database, grace)[0]["grace"] >= timedelta(seconds=float(QUICK["UNKNOWN_GRACE"]))
        terms = "SELECT DISTINCT expires_at - created_at AS life FROM payments"
        assert [row["life"] for row in query(database, terms)] == [timedelta(days=1)]
        # That the clock was wrong, and by how much, is in the replica's own log.
        said = datetime.fromisoformat(entries(ahead.process)[-1]["timestamp"])
        assert said - datetime.now(UTC) > AHEAD - timedelta(hours=1)
