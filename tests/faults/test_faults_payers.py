"""Payers come back while something is out of order, or by the thousand: each has a page in time, nobody else loses."""

import asyncio
import itertools
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx2
import pytest

from app.api.admission import MOST_PAGES
from app.macs import RETURL, Macs
from tests.conftest import QUICK
from tests.faults.conftest import Server, own_server
from tests.faults.offer import get, offer
from tests.faults.test_faults_overload import port_of, postbacks
from tests.proxy import Fault
from tests.support import (
    SECRET_KEY,
    Service,
    Simulator,
    at_once,
    bodies,
    eventually,
    hush,
    metric,
    new_refid,
    payment,
    query,
    run_service,
    run_simulator,
    spoken,
)

NEVER_ACTS = "250780000005"
CALM = QUICK | {"CHECK_SCHEDULE": "60", "GATEWAY_TIMEOUT": "30"}
IN_TIME = 3.5
ASKED = re.compile(r'(?m)^kpayd_gateway_calls_total\{action="checkstatus",outcome="\w+"\} (\S+)$')


@pytest.fixture(scope="module")
def kpay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """Run a K-Pay that these tests may break."""
    with run_simulator(tmp_path_factory.mktemp("kpay")) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], kpay: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that asks K-Pay when a payer comes, and seldom else."""
    with run_service(tmp_path_factory.mktemp("payers"), new_database(), kpay, CALM) as service:
        yield service


def path(refid: str) -> str:
    """Return the payer's way back."""
    return f"/kpay/return/{refid}/{Macs([SECRET_KEY]).make('return', refid)}"


def arrive(service: Service, refid: str) -> httpx2.Response:
    """Come back as a payer's browser does; fails where it shows nothing for too long."""
    with service.client(None) as http:
        began = time.monotonic()
        answer = http.get(path(refid))
        assert time.monotonic() - began < IN_TIME, answer.status_code
    return answer


def asked(service: Service) -> float:
    """Return how often this service has asked K-Pay about a payment."""
    return sum(map(float, ASKED.findall(service.http.get("/metrics").text)))


@contextmanager
def behaving(kpay: Simulator, **how: object) -> Iterator[None]:
    """Let K-Pay behave so until the block ends."""
    kpay.behave(**how)
    try:
        yield
    finally:
        kpay.behave(**{name: type(value)() for name, value in how.items()})


def is_comforting(page: httpx2.Response) -> bool:
    """Whether a page says that nothing is lost, and comes again by itself."""
    assert page.status_code == 503, page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["retry-after"].isdigit()
    assert '<meta http-equiv="refresh" content="5">' in page.text
    return "Nothing is lost" in page.text


def test_fault_25_a_payer_waits_two_seconds_for_a_slow_k_pay(service: Service, kpay: Simulator) -> None:
    """The waiting page comes after two seconds though K-Pay takes five; its word is taken in when it comes."""
    refid = service.start(NEVER_ACTS)["refid"]
    kpay.settle(refid, "01", postback=False)
    with behaving(kpay, latency=5):
        assert arrive(service, refid).status_code == 200
        assert arrive(service, refid).status_code == 200
        assert service.read(refid, wait=10)["status"] == "succeeded"
    assert asked(service) == 1
    assert arrive(service, refid).status_code == 303


def test_fault_31_payers_ask_nothing_of_a_k_pay_that_is_down(
    new_database: Callable[[], str], kpay: Simulator, tmp_path: Path
) -> None:
    """While the breaker is open payers have their page at once and K-Pay hears nothing; when it is back they go on."""
    first_pause = 0.9  # seconds at least
    with run_service(tmp_path, new_database(), kpay, CALM, "--no-worker") as service:
        refids = [service.start(NEVER_ACTS)["refid"] for _ in range(25)]
        with behaving(kpay, down=True):
            for refid in refids[:4]:
                assert arrive(service, refid).status_code == 200
            began = time.monotonic()
            assert arrive(service, refids[4]).status_code == 200
            assert metric(service, "kpayd_gateway_breaker_open") == 1
            before = asked(service)
            assert before == 5
            said = at_once(service.url, [spoken("GET", path(refid)) for refid in refids[5:]])
            assert {each.status for each in said} == {200}
            probes = asked(service) - before
            assert probes == 0 or (probes == 1 and time.monotonic() - began > first_pause)
            time.sleep(1.2 if probes == 0 else 2.4)
            said = at_once(service.url, [spoken("GET", path(refid)) for refid in refids[5:]])
            assert {each.status for each in said} == {200}
            assert asked(service) == before + probes + 1  # the probe
        kpay.settle(refids[5], "01", postback=False)
        eventually(lambda: arrive(service, refids[5]).status_code == 303, seconds=20, every=0.5)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a PostgreSQL that these tests may shut off."""
    with own_server() as server:
        yield server


@pytest.mark.parametrize("fault", [Fault.BLACKHOLE, Fault.REFUSE])
def test_fault_40_a_payer_has_a_page_without_a_database(
    fault: Fault, server: Server, kpay: Simulator, tmp_path: Path
) -> None:
    """A database that says nothing, or is not there: a page in time that comes again, and goes on when it is."""
    through = {"DATABASE_URL": server.url}
    with run_service(tmp_path, server.direct, kpay, CALM | through) as service:
        refid = service.start(NEVER_ACTS)["refid"]
        assert arrive(service, refid).status_code == 200
        server.proxy.set(fault)
        try:
            for _ in range(3):
                assert is_comforting(arrive(service, refid))
            with service.client(None) as http:
                assert http.get(path(refid) + "x").status_code == 404  # the mac needs no database
        finally:
            server.proxy.set(Fault.NONE)
        kpay.settle(refid, "01", postback=False)
        eventually(lambda: arrive(service, refid).status_code == 303, seconds=20, every=0.5)


@pytest.mark.timeout(180)
def test_fault_04_a_flood_by_one_payers_link_costs_others_nothing(service: Service, kpay: Simulator) -> None:
    """Under 400 arrivals a second by one link postbacks and callers are answered in time, and K-Pay is asked rarely."""
    refids = [service.start(NEVER_ACTS)["refid"] for _ in range(20)]
    hush(service)
    seconds = 8.0
    flood, read = spoken("GET", path(refids[0]), connection="keep-alive"), get(f"/v1/payments/{refids[1]}", service.key)
    calls = [(400.0, lambda: flood), (15.0, postbacks(service, refids[1:])), (10.0, lambda: read)]
    began = time.monotonic()
    flooded, posted, reads = asyncio.run(offer(port_of(service), calls, seconds=seconds))
    assert set(flooded.statuses) <= {200, 503}, flooded.statuses
    assert flooded.statuses[200] > 0
    assert flooded.without_retry_after == 0
    assert set(posted.statuses) == {200}, posted.statuses
    assert posted.percentile(95) < 3
    assert len([body for refid in refids for body in bodies(service, refid)]) == posted.statuses[200]
    # A payer's page costs a caller's place as any call does: some may have to come again.
    assert set(reads.statuses) <= {200, 503}, reads.statuses
    assert reads.statuses[200] > 0.2 * 10 * seconds, reads.statuses
    known = kpay.ledger(refids[0])
    assert known is not None
    assert 2 <= known["checks"] <= 1 + (time.monotonic() - began) / 2
    assert eventually(lambda: service.http.post("/v1/payments", json=payment(NEVER_ACTS)).status_code == 201)


def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _open(service: Service, refid: str, stack: AsyncExitStack) -> tuple[int, asyncio.StreamReader]:
    """Open one stream of news; return its status, and what is left to read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(service))
    stack.callback(_hang_up, writer)
    writer.write(spoken("GET", f"{path(refid)}/news"))
    return int((await reader.readuntil(b"\r\n\r\n"))[9:12]), reader


@pytest.mark.timeout(180)
def test_fault_41_open_pages_are_limited_and_cost_others_nothing(service: Service) -> None:
    """Two thousand pages wait for news; the next is told to look by itself, and everybody else is served as ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2 * MOST_PAGES
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * MOST_PAGES), hard))
    refids = [service.start(NEVER_ACTS)["refid"] for _ in range(10)]

    async def crowd() -> None:
        async with AsyncExitStack() as stack:
            turn = itertools.cycle(refids)
            streams: list[tuple[int, asyncio.StreamReader]] = []
            while len(streams) < MOST_PAGES:
                more = await asyncio.gather(*(_open(service, next(turn), stack) for _ in range(50)))
                streams += [each for each in more if each[0] == 200]
                assert len(stack._exit_callbacks) < 2 * MOST_PAGES  # type: ignore[attr-defined] # as long as it is
            statuses = [(await _open(service, next(turn), stack))[0] for _ in range(20)]
            assert statuses == [503] * 20
            await asyncio.to_thread(others, service, refids[0])
            for _, reader in streams[:: len(refids)][:20]:
                assert b"retry: " in await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
                assert b": \n" in await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)

    def others(service: Service, refid: str) -> None:
        with service.client(None) as http:
            assert is_comforting(http.get(f"{path(refid)}/news"))
        took = []
        for number in range(20):
            began = time.monotonic()
            said = service.postback(refid, statusid="03", statusdesc=f"{number}")
            assert (said.status_code, said.json()["reply"]) == (200, "OK")
            took.append(time.monotonic() - began)
        assert median(took) < 1
        assert arrive(service, refid).status_code == 200
        assert service.read(refid)["status"] == "pending"
        assert metric(service, 'kpayd_shed_total{kind="page"}') >= 20

    asyncio.run(crowd())
    eventually(lambda: metric(service, "kpayd_streams") == 0, seconds=30)
    assert arrive(service, refids[0]).status_code == 200


@pytest.mark.parametrize("latency", [0, 12], ids=["K-Pay quick", "K-Pay slow"])
def test_fault_46_open_pages_hold_up_no_deploy(
    latency: int, new_database: Callable[[], str], kpay: Simulator, tmp_path: Path
) -> None:
    """At SIGTERM every stream of news ends within two seconds as it should, also while K-Pay is being asked."""

    async def run(service: Service, refid: str) -> float:
        async with AsyncExitStack() as stack:
            streams = [await _open(service, refid, stack) for _ in range(50)]
            assert {status for status, _ in streams} == {200}
            await asyncio.sleep(0.5)
            service.process.child.terminate()
            began = time.monotonic()
            ends = await asyncio.gather(*(reader.read() for _, reader in streams))
            took = time.monotonic() - began
        assert all(end.endswith(b"0\r\n\r\n") for end in ends)
        assert not any(b"final" in end for end in ends)
        return took

    with run_service(tmp_path, new_database(), kpay, CALM, "--no-worker") as service:
        refid = service.start(NEVER_ACTS)["refid"]
        with behaving(kpay, latency=latency):
            took = asyncio.run(run(service, refid))
    assert took < 4


def test_fault_25_the_news_do_not_wait_for_a_slow_k_pay(service: Service, kpay: Simulator) -> None:
    """A page that has K-Pay asked hears soon that the payment is over, though K-Pay takes twelve."""

    async def run(refid: str) -> bytes:
        async with AsyncExitStack() as stack:
            _, reader = await _open(service, refid, stack)
            await asyncio.sleep(0.5)
            sql = "UPDATE payments SET expires_at = now(), next_check_at = now(), gateway = 'other' WHERE refid = $1"
            await asyncio.to_thread(query, service.database_url, sql, refid)  # the clock ends it; nobody is asked
            await asyncio.to_thread(eventually, lambda: service.read(refid)["status"] == "expired")
            return await asyncio.wait_for(reader.readuntil(b"final"), 4)

    refid = service.start(NEVER_ACTS)["refid"]
    with behaving(kpay, latency=12):
        assert asyncio.run(run(refid)).endswith(b"event: final")


def test_fault_54_the_log_never_has_the_payers_mac(
    new_database: Callable[[], str], kpay: Simulator, tmp_path: Path
) -> None:
    """At DEBUG, whatever comes of an arrival, no line holds a mac that opens something, nor the key to it."""
    more = CALM | {"LOG_LEVEL": "DEBUG"}
    with run_service(tmp_path, new_database(), kpay, more) as service, service.client(None) as http:
        refid, over = service.start(NEVER_ACTS)["refid"], service.start("250780000001")["refid"]
        service.read(over, wait=10)
        for each in (refid, over, new_refid()):
            for method in ("GET", "HEAD", "POST", "PUT"):
                http.request(method, path(each))
            http.get(path(each) + "/nowhere")
            http.get(path(each) + "?" + "waited=" * 100)
            at_once(service.url, [spoken("GET", path(each) + " HTTP/9.9\r\nx: ")])
        with http.stream("GET", f"{path(refid)}/news"):
            time.sleep(0.2)
        with behaving(kpay, down=True):
            for _ in range(3):
                http.get(path(service.start(NEVER_ACTS)["refid"]))
        query(service.database_url, "ALTER TABLE payments RENAME TO gone")
        broken = http.get(path(refid))
        query(service.database_url, "ALTER TABLE gone RENAME TO payments")
        assert broken.status_code >= 500
        known = [row["refid"] for row in query(service.database_url, "SELECT refid FROM payments")]
    words, macs = service.process.words, Macs([SECRET_KEY])
    assert refid in words
    assert not [each for each in known for purpose in ("return", RETURL) if macs.make(purpose, each) in words]
    assert SECRET_KEY not in words


def test_fault_15_bodies_that_do_not_come_hold_no_payers_place(service: Service) -> None:
    """Three hundred strangers who begin to send something to the way back are answered at once; a payer has a page."""
    port = port_of(service)
    refid = service.start(NEVER_ACTS)["refid"]
    with ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(300)]
        for line in lines:
            line.sendall(b"POST /kpay/return/a/b HTTP/1.1\r\nHost: kpayd\r\nContent-Length: 9\r\n\r\nx")
        assert arrive(service, refid).status_code == 200
        assert lines[-1].recv(64).startswith(b"HTTP/1.1 404")


def test_fault_31_payers_leave_room_for_the_checks_that_are_due(
    new_database: Callable[[], str], kpay: Simulator, tmp_path: Path
) -> None:
    """However many payers come, as many questions as the setting allows are theirs at a time."""
    more = CALM | {"CHECK_CONCURRENCY": "2"}
    with run_service(tmp_path, new_database(), kpay, more, "--no-worker") as service:
        refids = [service.start(NEVER_ACTS)["refid"] for _ in range(10)]
        with behaving(kpay, latency=3):
            said = at_once(service.url, [spoken("GET", path(refid)) for refid in refids])
            assert {each.status for each in said} == {200}
            eventually(lambda: asked(service) == 2)
    assert sum(int((kpay.ledger(refid) or {})["checks"]) for refid in refids) == 2


def test_fault_46_a_payers_question_is_finished_before_the_end(
    new_database: Callable[[], str], kpay: Simulator, tmp_path: Path
) -> None:
    """A process that is stopped takes in what K-Pay answers to a payer's question, and leaves no lease behind."""
    url = new_database()
    with run_service(tmp_path, url, kpay, CALM, "--no-worker") as service:
        refid = service.start(NEVER_ACTS)["refid"]
        kpay.settle(refid, "01", postback=False)
        with behaving(kpay, latency=4):
            assert arrive(service, refid).status_code == 200
            assert service.process.stop() == 0
    (row,) = query(url, "SELECT status, leased_until FROM payments WHERE refid = $1", refid)
    assert (row["status"], row["leased_until"]) == ("succeeded", None)
