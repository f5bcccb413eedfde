"""The database out of reach, silent, busy or behind a pooler: answers in time, and nothing said that is not stored."""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest
from sqlalchemy import text

from app.database import Database, async_url, open_database
from app.dev.laptop import free_port
from tests.conftest import QUICK
from tests.faults.conftest import Server, own_server
from tests.proxy import Fault
from tests.support import (
    Service,
    Simulator,
    bodies,
    eventually,
    hush,
    new_refid,
    payment,
    run_command,
    run_service,
)

IN_TIME = 5
"""Two seconds are promised; the rest is for a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a PostgreSQL that these tests may shut off."""
    with own_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: Server, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service that reaches its database through a proxy."""
    through = {"DATABASE_URL": server.url}
    with run_service(tmp_path_factory.mktemp("harmed"), server.direct, simulator, QUICK | through) as service:
        yield service


@contextmanager
def timed() -> Iterator[None]:
    """Fail where the block takes longer than an answer may."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < IN_TIME


def is_503(answer: httpx2.Response) -> bool:
    """Whether an answer is a 503 that says when to come again."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"].isdigit()
    return True


def back(service: Service) -> None:
    """Wait until the service is itself again."""
    eventually(lambda: service.http.get("/readyz").status_code == 200, seconds=20)


SILENCES: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "refused": (lambda server: server.proxy.set(Fault.REFUSE), lambda server: server.proxy.set(Fault.NONE)),
    "black hole": (lambda server: server.proxy.set(Fault.BLACKHOLE), lambda server: server.proxy.set(Fault.NONE)),
    "frozen": (lambda server: server.signal_all(signal.SIGSTOP), lambda server: server.signal_all(signal.SIGCONT)),
}


@pytest.mark.parametrize("silence", SILENCES)
def test_fault_40_answers_are_bounded_while_postgresql_is_silent(
    silence: str, server: Server, service: Service
) -> None:
    """Starts, reads, checks and postbacks are answered 503 within two seconds, and it works again unaided."""
    refid, fall_silent, speak = service.start("250780000005")["refid"], *SILENCES[silence]
    fall_silent(server)
    try:
        for _ in range(2):
            with timed():
                assert is_503(service.http.post("/v1/payments", json=payment(refid=new_refid())))
            with timed():
                assert is_503(service.http.get(f"/v1/payments/{refid}"))
            with timed():
                assert is_503(service.http.post(service.returl(refid), json={"refid": refid, "statusid": "01"}))
        with timed():
            assert service.http.get("/readyz").status_code == 503
        with timed():
            assert service.http.get("/healthz").status_code == 200
    finally:
        speak(server)
    back(service)
    assert service.read(refid)["status"] == "pending"
    assert service.start()["status"] == "pending"


def test_fault_40_a_rollback_that_is_not_answered_holds_nobody_up(server: Server) -> None:
    """An error within a transaction ends in two seconds too where PostgreSQL falls silent before the ROLLBACK."""

    async def fail(database: Database) -> None:
        async with database.transaction() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.to_thread(server.proxy.set, Fault.BLACKHOLE)
            raise ZeroDivisionError

    async def run() -> None:
        async with open_database(server.url, pool=1) as database:
            for _ in range(2):  # the second time shows that the first one has let go of its connection
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    await fail(database)
                assert time.monotonic() - began < IN_TIME
                await asyncio.to_thread(server.proxy.set, Fault.NONE)
            await asyncio.to_thread(server.proxy.set, Fault.BLACKHOLE)
            began = time.monotonic()
        assert time.monotonic() - began < IN_TIME, "closing waited for an answer"

    try:
        asyncio.run(run())
    finally:
        server.proxy.set(Fault.NONE)
        server.proxy.cut()


def test_fault_23_no_postback_is_acknowledged_that_is_not_stored(server: Server, service: Service) -> None:
    """While the database is away a postback is answered 503, and the same one is taken in when it is back."""
    refid = service.start("250780000005")["refid"]
    body = {"tid": service.read(refid)["tid"], "refid": refid, "statusid": "01", "statusdesc": "n. 23"}
    server.proxy.set(Fault.REFUSE)
    try:
        assert is_503(service.http.post(service.returl(refid), json=body))
    finally:
        server.proxy.set(Fault.NONE)
    back(service)
    assert not bodies(service, refid)
    assert service.http.post(service.returl(refid), json=body).json()["reply"] == "OK"
    assert len(bodies(service, refid)) == 1


def test_fault_23_a_commit_that_was_not_heard_of_is_not_acknowledged(server: Server, service: Service) -> None:
    """PostgreSQL stores a postback and its answer is lost: 503, and the repetition is the same one effect."""
    refid = service.start("250780000005")["refid"]
    hush(service)
    server.proxy.set(Fault.HOLD_ANSWER)
    try:
        assert is_503(service.http.post(service.returl(refid), json={"refid": refid, "statusid": "03"}))
    finally:
        server.proxy.set(Fault.NONE)
        server.proxy.cut()
    back(service)
    assert service.http.post(service.returl(refid), json={"refid": refid, "statusid": "03"}).status_code == 200
    assert len(bodies(service, refid)) == 1
    assert [event["source"] for event in service.events(refid)].count("postback") == 1


def test_fault_41_callers_who_find_every_connection_taken_are_told_so_and_postbacks_are_not_held_up(
    server: Server, service: Service
) -> None:
    """With every connection of the API stuck, callers get 503 within two seconds and postbacks their OK as ever."""
    refid = service.start("250780000005")["refid"]
    hush(service)
    with _held(server, "LOCK TABLE claims IN ACCESS EXCLUSIVE MODE"), ThreadPoolExecutor(40) as pool:
        stuck = [
            pool.submit(service.http.post, "/v1/payments", json=payment(), headers={"Idempotency-Key": new_refid()})
            for _ in range(30)
        ]
        time.sleep(0.5)
        with timed():
            assert service.postback(refid, statusid="03").json()["reply"] == "OK"
        assert all(is_503(each.result()) for each in stuck)
    back(service)


def test_fault_41_no_connection_is_held_while_kpay_is_asked(service: Service, simulator: Simulator) -> None:
    """Forty starts wait for a slow K-Pay, four times what the database takes at once, and a read is answered."""
    refid = service.start("250780000005")["refid"]
    simulator.behave(latency=1.5)
    try:
        with ThreadPoolExecutor(40) as pool:
            starts = [pool.submit(service.http.post, "/v1/payments", json=payment()) for _ in range(40)]
            eventually(lambda: len(service.http.get("/v1/payments", params={"status": "created"}).json()["items"]) > 20)
            assert service.http.get(f"/v1/payments/{refid}").status_code == 200
            assert {each.result().status_code for each in starts} == {201}
    finally:
        simulator.behave(latency=0)


@contextmanager
def _held(server: Server, statement: str) -> Iterator[None]:
    """Hold what `statement` locks until the block ends."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(async_url(server.direct).replace("+asyncpg", "")))
    try:
        transaction = connection.transaction()
        loop.run_until_complete(transaction.start())
        loop.run_until_complete(connection.execute(statement))
        yield
        loop.run_until_complete(transaction.rollback())
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


@contextmanager
def pgbouncer(server: Server, folder: Path) -> Iterator[str]:
    """Run a pgbouncer that gives every transaction another of three connections; yield the database's address there."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (Debian: apt install pgbouncer)")
    port = free_port()
    config = folder / "pgbouncer.ini"
    config.write_text(f"""[databases]
kpayd = host={server.server.socket.parent} dbname=kpayd user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
{"user = nobody" if os.geteuid() == 0 else ""}
""")
    with subprocess.Popen([program, config], stderr=subprocess.DEVNULL) as child:
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/kpayd"
        finally:
            child.terminate()


@pytest.mark.timeout(180)
def test_fault_42_it_runs_behind_a_pooler_that_shares_connections(
    server: Server, simulator: Simulator, tmp_path: Path
) -> None:
    """Behind pgbouncer, three connections for all, 60 payments at once are started, posted back, confirmed and read."""
    with pgbouncer(server, tmp_path) as url:
        pooled = {"DATABASE_URL": url, "DATABASE_POOLED": "true"}
        with run_service(tmp_path, server.direct, simulator, QUICK | pooled) as service:
            back(service)
            with ThreadPoolExecutor(16) as pool:
                started = list(pool.map(lambda _: service.start()["refid"], range(60)))
                ended = list(pool.map(lambda refid: service.read(refid, wait=30)["status"], started))
            assert set(ended) == {"succeeded"}
            assert all(len(bodies(service, refid)) == 1 for refid in started)
            assert '"level": "error"' not in service.process.words
            refused = run_command(service.env, "migrate")
    assert refused.returncode == 1
    assert "without the pooler" in refused.stderr


def test_fault_42_two_hosts_may_stand_in_the_address(server: Server, simulator: Simulator, tmp_path: Path) -> None:
    """With a dead host before it in the address, the database is found all the same."""
    url = server.url.replace("@127.0.0.1:", f"@127.0.0.1:{free_port()},127.0.0.1:")
    hosts = {"DATABASE_URL": f"{url}?target_session_attrs=read-write"}
    with run_service(tmp_path, server.direct, simulator, QUICK | hosts) as service:
        assert service.read(service.start()["refid"], wait=15)["status"] == "succeeded"
