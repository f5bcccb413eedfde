"""Deploys: two replicas replaced one after the other, a migration under load, and the code before on the new schema."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import httpx2
import pytest
from alembic import command

from app.dev.laptop import free_port
from app.schema import Schema, _config
from app.settings import environment
from tests.conftest import QUICK
from tests.given import Postgres
from tests.proxy import Proxy, running_proxy
from tests.support import (
    Service,
    Simulator,
    answers,
    create_database,
    eventually,
    kpayd,
    new_refid,
    payment,
    query,
    run_service,
    settings,
)

ROOT = Path(__file__).parents[2]


class Balancer:
    """Leads each new connection to the next replica that says it is ready, as a load balancer does."""

    def __init__(self, proxy: Proxy, ports: list[int]) -> None:
        self.port = proxy.port
        self._proxy = proxy
        self._ports = ports
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with httpx2.Client(trust_env=False, timeout=1) as http:
            for port in itertools.cycle(self._ports):
                try:
                    ready = http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
                except httpx2.HTTPError:
                    ready = False
                if ready:
                    self._proxy.move(("127.0.0.1", port))
                if self._stop.wait(0.1):
                    return


class Traffic:
    """Starts, reads, waits and postbacks without a pause, and what was answered."""

    def __init__(self, service: Service, url: str, callers: int = 4) -> None:
        self._service = service
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        self.answers: Counter[object] = Counter()
        self.slowest = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, when every call has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with httpx2.Client(base_url=self._url, headers=self._service.http.headers, trust_env=False, timeout=20) as http:
            while not self._stop.is_set():
                refid = new_refid()
                self._note("start", partial(http.post, "/v1/payments", json=payment(refid=refid)))
                self._note("read", partial(http.get, f"/v1/payments/{refid}", params={"wait": 0.5}))
                said = {"refid": refid, "statusid": "03"}
                self._note("postback", partial(http.post, self._service.returl(refid), json=said))

    def _note(self, kind: str, call: Callable[[], httpx2.Response]) -> None:
        began = time.monotonic()
        try:
            status: object = call().status_code
        except httpx2.HTTPError as exc:
            status = type(exc).__name__
        self.answers[kind, status] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)

    @property
    def failed(self) -> Counter[object]:
        """What was not answered as it should be."""
        good = {("start", 201), ("read", 200), ("postback", 200)}
        return Counter({each: count for each, count in self.answers.items() if each not in good})


@pytest.mark.timeout(240)
def test_fault_46_a_rolling_restart_fails_no_request(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """Two replicas are replaced one after the other, twice, under load: every request has its ordinary answer."""
    url, ports = new_database(), [free_port(), free_port()]
    more = QUICK | {"STOP_DELAY": "5"}
    with ExitStack() as stack:
        replicas = [stack.enter_context(run_service(tmp_path, url, simulator, more, port=port)) for port in ports]
        proxy = stack.enter_context(running_proxy(("127.0.0.1", ports[0])))
        balancer = stack.enter_context(Balancer(proxy, ports))
        service = replicas[-1]  # the last key is the one that holds
        with Traffic(service, f"http://127.0.0.1:{balancer.port}") as traffic:
            for port in ports:
                old = replicas.pop(0)
                assert old.process.stop() == 0
                assert '"level": "error"' not in old.process.words
                process = stack.enter_context(kpayd(tmp_path, old.env, "serve", "--port", str(port)))
                answers(process, f"http://127.0.0.1:{port}/readyz")
                time.sleep(0.5)
    assert not traffic.failed
    assert traffic.answers["start", 201] > 10


def test_fault_46_readiness_goes_before_the_door_closes(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """After SIGTERM readiness says 503 at once, requests are still taken for a while, and connections are closed."""
    with run_service(tmp_path, new_database(), simulator, QUICK | {"STOP_DELAY": "8"}) as service:
        assert "connection" not in service.http.get("/healthz").headers
        service.process.child.terminate()
        told = eventually(
            lambda: (answer := service.http.get("/readyz")).status_code == 503 and answer, seconds=6, every=0.02
        )
        assert told.json()["stopping"] is True
        assert told.headers["connection"] == "close"
        assert service.start()["status"] == "pending"
        assert service.process.child.wait(30) == 0


@pytest.fixture(scope="session")
def code_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the code as it was before the newest migration."""
    newest = next((ROOT / "migrations" / "versions").glob(f"{Schema.of_this_code().revisions[0]}*.py"))
    git = ["git", "-C", str(ROOT)]
    log = [*git, "log", "--diff-filter=A", "--format=%H", "--", str(newest.relative_to(ROOT))]
    added = subprocess.run(log, check=False, capture_output=True, text=True).stdout.split()
    archive = [*git, "archive", f"{added[-1]}^" if added else "none", "app", "migrations", "alembic.ini"]
    packed = subprocess.run(archive, check=False, capture_output=True)
    if packed.returncode != 0:
        pytest.skip("the history of this clone does not reach back to before the newest migration")
    folder = tmp_path_factory.mktemp("before")
    # By the system's: Python's own got its safe way of unpacking with a patch release that not every 3.11 has.
    subprocess.run(["tar", "-xf", "-", "-C", str(folder)], input=packed.stdout, check=True)  # noqa: S607 - wherever it is
    return folder


@contextmanager
def old_service(code: Path, folder: Path, url: str, simulator: Simulator) -> Iterator[Service]:
    """Run the service of the code before."""
    port = free_port()
    env = settings(url, f"{simulator.url}/", port, QUICK) | {"PYTHONPATH": str(code)}
    with kpayd(folder, env, "serve", "--port", str(port)) as process:
        answers(process, f"http://127.0.0.1:{port}/healthz")
        add = [sys.executable, "-m", "app", "clients", "add", "old-shop", "--json"]
        made = subprocess.run(add, env=environment() | env, cwd=folder, check=True, capture_output=True, text=True)
        service = Service(process, f"http://127.0.0.1:{port}", url, env, key=json.loads(made.stdout)["key"])
        with service.http:
            yield service


@contextmanager
def idle_reader(url: str) -> Iterator[None]:
    """Hold tables open in a transaction that does nothing, as somebody's forgotten session does.

    It has read them, and holds the lock of a VACUUM, too: a migration that a reader does not hold up waits for that.
    And the version's row cannot be changed: one that makes new tables only waits for that, with all its locks held.
    """
    script = (
        "import asyncio, asyncpg, sys\n"
        "async def main():\n"
        "    c = await asyncpg.connect(sys.argv[1])\n"
        "    await c.execute('BEGIN; SELECT 1 FROM payments, events, clients LIMIT 1')\n"
        "    await c.execute('LOCK TABLE payments, events, clients IN SHARE UPDATE EXCLUSIVE MODE')\n"
        "    await c.execute('LOCK TABLE alembic_version IN SHARE MODE')\n"
        "    print('reading', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        try:
            yield
        finally:
            child.kill()


@pytest.mark.timeout(240)
def test_fault_47_a_migration_stands_in_nobodys_way(
    code_before: Path, postgres: Postgres, simulator: Simulator, tmp_path: Path
) -> None:
    """While a migration waits behind an idle reader, the code before serves on as if nothing were; then it is done."""
    url = at_schema_of(code_before, postgres, "kpayd_migrating")
    with (
        old_service(code_before, tmp_path, url, simulator) as old,
        ExitStack() as reading,
        Traffic(old, old.url, callers=2) as traffic,
    ):
        reading.enter_context(idle_reader(url))
        with migrating(url, tmp_path) as migration:
            time.sleep(6)
            assert migration.poll() is None, "nothing was in its way"
            reading.close()
            assert migration.wait(60) == 0
    # Version 0001 named no columns in one statement: prepared for another row it fails once, and K-Pay comes again.
    assert set(traffic.failed) <= {("postback", 503)}, traffic.failed
    assert traffic.failed.total() <= 2
    assert traffic.answers["start", 201] > 5
    # Each attempt holds writers up for the lock time-out, a fifth of a second; without one it would be for six.
    assert traffic.slowest < 4.5
    assert Schema.of_this_code().judge(query(url, "SELECT version_num FROM alembic_version")[0][0]) == "current"


@pytest.mark.timeout(240)
def test_fault_48_the_code_before_runs_on_the_schema_after(
    code_before: Path, postgres: Postgres, simulator: Simulator, tmp_path: Path
) -> None:
    """Old and new code serve one database of the new schema: each starts payments and reads and checks the other's."""
    create_database(postgres, "kpayd_both", template="kpayd_template")
    url = postgres.url_of("kpayd_both")
    with (
        old_service(code_before, tmp_path, url, simulator) as old,
        run_service(tmp_path, url, simulator, QUICK) as new,
    ):
        assert 'schema":"newer' in old.http.get("/readyz").text.replace(" ", "")
        old.http.headers["Authorization"] = new.http.headers["Authorization"]
        for starts, reads in ((old, new), (new, old)):
            paid, declined, lost = (starts.start(number)["refid"] for number in NUMBERS)
            assert reads.read(paid, wait=15)["status"] == "succeeded"
            assert reads.read(declined, wait=15)["failure"]["code"] == "declined"
            assert reads.read(lost, wait=15)["status"] == "succeeded"
            assert reads.http.post(f"/v1/payments/{paid}/check").json()["status"] == "succeeded"
            assert reads.postback(paid, statusid="01").json()["reply"] == "OK"
            again = payment(NUMBERS[0], refid=paid)
            assert reads.http.post("/v1/payments", json=again).status_code == 200


def has_postback(service: Service, refid: str) -> bool:
    """Whether a postback is in a payment's timeline."""
    return "postback" in {event["source"] for event in service.events(refid)}


@pytest.mark.timeout(240)
def test_fault_48_both_versions_keep_the_postbacks_that_reach_them(
    code_before: Path, postgres: Postgres, simulator: Simulator, tmp_path: Path
) -> None:
    """A postback is kept by old and new code; the same one by both is noted twice at most, and changes nothing."""
    create_database(postgres, "kpayd_inboxes", template="kpayd_template")
    url = postgres.url_of("kpayd_inboxes")
    with (
        old_service(code_before, tmp_path, url, simulator) as old,
        run_service(tmp_path, url, simulator, QUICK) as new,
    ):
        old.http.headers["Authorization"] = new.http.headers["Authorization"]
        for first, second in ((old, new), (new, old)):
            refid = first.start()["refid"]
            paid = first.read(refid, wait=15)
            eventually(lambda: not query(url, "SELECT 1 FROM payments WHERE next_check_at IS NOT NULL"))
            eventually(partial(has_postback, new, refid))  # K-Pay's own
            noted = len(new.events(refid))
            said = {
                "tid": paid["tid"],
                "momtransactionid": paid["momtransactionid"],
                "statusid": "01",
                "n": new_refid(),
            }
            for service in (first, second, first, second):
                assert service.postback(refid, **said).json()["reply"] == "OK"
            kept = "SELECT body FROM evidence UNION ALL SELECT body FROM bodies"
            assert 1 <= [said["n"].encode() in row["body"] for row in query(url, kept)].count(True) <= 2
            events = new.events(refid)
            assert noted + 1 <= len(events) <= noted + 2
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
            assert {event["type"] for event in events[noted:]} == {"evidence"}
            assert new.read(refid)["status"] == "succeeded"


NUMBERS = ("250780000000", "250780000001", "250780000010")


def at_schema_of(code: Path, postgres: Postgres, name: str) -> str:
    """Make a database at the newest schema that `code` knows."""
    known = max(path.name.partition("_")[0] for path in (code / "migrations" / "versions").glob("[0-9]*.py"))
    create_database(postgres, name, template="kpayd_template")
    command.downgrade(_config(postgres.url_of(name)), known)
    return postgres.url_of(name)


@contextmanager
def migrating(url: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `kpayd migrate`."""
    env = environment() | {"KPAYD_DATABASE_URL": url}
    with subprocess.Popen([sys.executable, "-m", "app", "migrate"], env=env, cwd=folder) as child:
        try:
            yield child
        finally:
            child.kill()
