"""The database moves to another server: to a standby that has everything, to one that lags, to one that only reads."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import QUICK
from tests.faults.conftest import Server, own_server
from tests.faults.standby import NEVER, load, misnumbered, running_standby, started
from tests.proxy import Fault, running_proxy
from tests.support import Service, Simulator, eventually, hush, metric, new_refid, payment, query, run_service

BOUND = 8.0
"""Seconds within which everybody is answered on a loaded machine; by itself it is about two."""


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    """Run a database for all these tests: what one promotes is the primary of the next."""
    with own_server() as server:
        yield server


@pytest.fixture(scope="module")
def promoted() -> Iterator[ExitStack]:
    """Keep the standbys that are promoted until the end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def service(
    primary: Server, promoted: ExitStack, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run one service, which is never restarted, over a database that moves."""
    schedule = {"CHECK_SCHEDULE": "0.3,1,600"}
    with run_service(tmp_path_factory.mktemp("failover"), primary.url, simulator, QUICK | schedule) as service:
        yield service
        assert service.process.child.poll() is None


def test_fault_39_a_synchronous_standby_loses_nothing(
    primary: Server, promoted: ExitStack, service: Service, simulator: Simulator
) -> None:
    """Failover to a synchronous standby under load loses no acknowledged payment and no acknowledged postback."""
    work = load(service, 2)
    standby = promoted.enter_context(running_standby(primary, synchronous=True))
    with work.running(3):
        work.more(100)
        standby.take_over()
        work.more(50)
    database = standby.server.url_of("kpayd")
    assert work.lost(database) == (set(), set())
    assert work.sent_though_turned_away(simulator) == []
    assert misnumbered(database) == []
    assert work.slowest < BOUND
    hush(service)


def test_fault_39_nothing_is_said_that_the_synchronous_standby_does_not_have(
    primary: Server, promoted: ExitStack, service: Service, simulator: Simulator
) -> None:
    """While a synchronous standby cannot be reached, nothing is acknowledged, however often it comes, and nothing sent.

    A commit whose wait is broken off (an operator cancels it, the primary restarts) stands on the primary all the same
    and can be seen there: finding it may not count as stored.
    """
    known = started(service)
    eventually(lambda: service.postback(known["refid"], statusid="03").status_code == 200)
    standby = promoted.enter_context(running_standby(primary, synchronous=True))
    refid, said = new_refid(), new_refid()
    words = {"tid": known["tid"], "refid": known["refid"], "statusid": "03", "statusdesc": said}
    told: list[int] = []

    def ask() -> None:
        before = time.monotonic()
        told.append(service.http.post("/v1/payments", json=payment(NEVER, refid=refid)).status_code)
        told.append(service.http.post(service.returl(known["refid"]), json=words).status_code)
        assert time.monotonic() - before < 2 * BOUND

    def landed() -> int:
        evidence = "SELECT FROM bodies WHERE position($1 IN encode(body, 'escape')) > 0"
        payments = "SELECT FROM payments WHERE refid = $1"
        return len(query(primary.direct, evidence, said)) + len(query(primary.direct, payments, refid))

    def broken_off() -> bool:
        ask()
        query(primary.direct, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        return landed() == 2

    standby.link.set(Fault.BLACKHOLE)
    try:
        assert eventually(broken_off, seconds=40)
        ask()
        assert simulator.ledger(refid) is None
    finally:
        standby.take_over()
    started(service)
    assert landed() == 0
    assert set(told) == {503}
    assert service.http.post("/v1/payments", json=payment(NEVER, refid=refid)).status_code == 201
    assert simulator.requests(refid) == 1


def test_fault_39_what_an_asynchronous_standby_lost_is_found_again(
    primary: Server, promoted: ExitStack, service: Service, simulator: Simulator
) -> None:
    """What a lagging standby has lost comes back when the caller repeats it: K-Pay tells the truth and charges once."""
    standby = promoted.enter_context(running_standby(primary, synchronous=False))
    kept = started(service, "250780000000")["refid"]
    assert service.read(kept, wait=10)["status"] == "succeeded"
    eventually(standby.has_all)
    standby.link.set(Fault.BLACKHOLE)
    by_refid, key, silent = new_refid(), new_refid(), new_refid()
    service.start("250780000010", refid=by_refid)
    by_key = service.http.post("/v1/payments", json=payment("250780000010"), headers={"Idempotency-Key": key})
    told = service.start(NEVER, refid=silent)
    standby.take_over()
    started(service)
    assert service.read(kept)["status"] == "succeeded"
    for refid in (by_refid, by_key.json()["refid"], silent):
        assert service.http.get(f"/v1/payments/{refid}").status_code == 404

    # K-Pay's word on a payment that is gone is kept, acknowledged and told to operators.
    alarm = metric(service, "kpayd_postbacks_unknown_payment_total")
    words = {"tid": told["tid"], "refid": silent, "momtransactionid": "", "statusid": "03", "statusdesc": "said"}
    answer = eventually(lambda: (got := service.http.post(service.returl(silent), json=words)).is_success and got)
    assert answer.json()["reply"] == "OK"
    assert metric(service, "kpayd_postbacks_unknown_payment_total") == alarm + 1

    again = service.http.post("/v1/payments", json=payment("250780000010", refid=by_refid))
    same = service.http.post("/v1/payments", json=payment("250780000010"), headers={"Idempotency-Key": key})
    assert [again.status_code, same.status_code] == [201, 201]
    assert same.json()["refid"] == by_key.json()["refid"]
    for refid in (by_refid, same.json()["refid"]):
        end = service.read(refid, wait=10)
        assert (end["status"], end["review_reasons"]) == ("succeeded", ["duplicate_refid"])
        truth = simulator.ledger(refid) or {}
        # The first request is forgotten here, so that rule 2 cannot forbid the second: K-Pay's 608 does.
        assert (truth["requests"], truth["tid"], truth["statusid"]) == (2, end["tid"], "01")


def test_fault_39_the_url_names_both_servers(
    primary: Server, promoted: ExitStack, simulator: Simulator, tmp_path: Path
) -> None:
    """Where the database's URL names both servers, the service finds the one that takes writes by itself."""
    standby = promoted.enter_context(running_standby(primary, synchronous=False))
    with running_proxy(str(standby.server.socket)) as other:
        hosts = f"127.0.0.1:{other.port},127.0.0.1:{primary.proxy.port}"
        url = f"postgresql://postgres@{hosts}/kpayd?target_session_attrs=read-write"
        with run_service(tmp_path, primary.url, simulator, QUICK | {"DATABASE_URL": url}) as service:
            started(service)
            standby.promote()
            primary.proxy.set(Fault.REFUSE)
            try:
                started(service)
            finally:
                primary.proxy.set(Fault.NONE)
                primary.proxy.move(str(standby.server.socket))


@pytest.mark.parametrize("how", ["old_connections", "new_connections"])
def test_fault_39_a_server_that_only_reads_is_left(
    how: str, primary: Server, service: Service, simulator: Simulator
) -> None:
    """Where the address leads to a server that only reads, reads go on and writes are 503, until it leads to another.

    Connections that the move left open lead to the server that only reads for as long as they are kept.
    """
    known = started(service)
    with running_standby(primary, synchronous=False) as standby:
        eventually(standby.has_all)
        primary.proxy.move(str(standby.server.socket))
        primary.proxy.cut()
        refids = [new_refid() for _ in range(4)]
        answers = [service.http.post("/v1/payments", json=payment(NEVER, refid=refid)) for refid in refids]
        assert {(each.status_code, each.headers.get("retry-after")) for each in answers} == {(503, "1")}
        assert service.read(known["refid"])["status"] == "pending"
        words = {"tid": known["tid"], "refid": known["refid"], "statusid": "03", "statusdesc": "said"}
        assert service.http.post(service.returl(known["refid"]), json=words).status_code == 503
        assert [simulator.ledger(refid) for refid in refids] == [None] * 4
        primary.proxy.move(str(primary.server.socket))
        if how == "new_connections":
            primary.proxy.cut()
        started(service)
        assert eventually(lambda: service.http.post(service.returl(known["refid"]), json=words).status_code == 200)
