"""Waiting for a payment to end: woken at once wherever it ends, by thousands, and at no cost to anybody else."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.given import Postgres, through, upstream
from tests.proxy import Fault, running_proxy
from tests.support import (
    Json,
    Service,
    Simulator,
    at_once,
    eventually,
    metric,
    new_refid,
    payment,
    query,
    run_service,
    spoken,
)

NEVER_ACTS = "250780000005"
PAYS = "250780000000"
CALM = {"CHECK_SCHEDULE": "60", "POSTBACK_RECHECKS": "0.3,0.6,1"}
"""Nobody looks at a payment by himself: what wakes is what was heard."""

Pair = tuple[Service, Service]
Open = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_LISTENERS = """FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%' OR query = 'SELECT 1')"""


@contextmanager
def two(folder: Path, url: str, simulator: Simulator, more: dict[str, str]) -> Iterator[Pair]:
    """Run two services over one database, which may have thousands of connections open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    with run_service(folder, url, simulator, CALM | more) as one, run_service(folder, url, simulator, CALM) as other:
        yield one, other
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def pair(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Run two services that hear each other."""
    with two(tmp_path_factory.mktemp("pair"), new_database(), simulator, {}) as services:
        hear_each_other(services)
        yield services


def pays(service: Service, simulator: Simulator, refid: str) -> float:
    """Let the payer pay and `service` hear of it; return when that was."""
    simulator.settle(refid, "01", postback=False)
    answer = service.http.post(f"/v1/payments/{refid}/check")
    assert answer.json()["status"] == "succeeded", answer.text
    return time.monotonic()


@contextmanager
def waiting(service: Service, refid: str) -> Iterator["Future[tuple[Json, float]]"]:
    """Have somebody wait for a payment, and when the answer came."""
    before = metric(service, "kpayd_waits")

    def wait() -> tuple[Json, float]:
        return service.read(refid, wait=30), time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(wait)
        eventually(lambda: metric(service, "kpayd_waits") == before + 1)
        yield future


def delay(pair: Pair, simulator: Simulator) -> float:
    """Wait at the first service for what the second does, and return how long it took to be told."""
    refid = pair[1].start(NEVER_ACTS)["refid"]
    with waiting(pair[0], refid) as future:
        paid = pays(pair[1], simulator, refid)
        read, told = future.result()
    assert read["status"] == "succeeded"
    return told - paid


def is_pooled(pair: Pair) -> bool:
    """Whether this run's services go through a pooler: then they find out by looking."""
    return "KPAYD_DATABASE_POOLED" in pair[0].env


def hear_each_other(pair: Pair) -> None:
    """Wait until both services listen; behind a pooler neither does."""
    if not is_pooled(pair):
        eventually(lambda: query(pair[0].database_url, f"SELECT count(*) AS n {_LISTENERS}")[0]["n"] == 2)


def test_a_wait_is_woken_by_another_replica(pair: Pair, simulator: Simulator) -> None:
    """Who waits at one service is answered at once when the payment ends at the other."""
    delays = sorted(delay(pair, simulator) for _ in range(5))
    assert delays[2] < 1, delays


def test_a_start_that_waits_is_woken_by_another_replica(pair: Pair, simulator: Simulator) -> None:
    """Who starts with `wait` at one service is answered 201 with the end that the other learnt of."""
    refid = new_refid()
    with ThreadPoolExecutor(1) as pool:
        request = payment(NEVER_ACTS, refid=refid)
        future = pool.submit(pair[0].http.post, "/v1/payments", params={"wait": 30}, json=request)
        eventually(lambda: metric(pair[0], "kpayd_waits") == 1)
        paid = pays(pair[1], simulator, refid)
        answer = future.result()
    assert time.monotonic() - paid < 3
    assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")


def test_a_start_that_waits_is_answered_with_the_end(pair: Pair) -> None:
    """A start with `wait` is answered 201 with the paid payment, and its repetition 200 with the same."""
    request = payment(PAYS, refid=new_refid())
    answers = [pair[0].http.post("/v1/payments", params={"wait": 20}, json=request) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [answer.json()["status"] for answer in answers] == ["succeeded", "succeeded"]


@pytest.mark.parametrize("wait", ["-1", "61", "x", "", "nan"])
def test_a_wait_that_is_none_starts_nothing(wait: str, pair: Pair, simulator: Simulator) -> None:
    """A start whose `wait` is no number from 0 to 60 is 422, named, and nothing is recorded."""
    refid = new_refid()
    answer = pair[0].http.post(f"/v1/payments?wait={wait}", json=payment(NEVER_ACTS, refid=refid))
    assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (422, ["wait"])
    assert pair[0].http.get(f"/v1/payments/{refid}").status_code == 404
    assert simulator.requests(refid) == 0


def test_the_longest_and_the_shortest_wait(pair: Pair, simulator: Simulator) -> None:
    """0 answers at once, also on a start; 60 answers when the payment ends."""
    began = time.monotonic()
    answer = pair[0].http.post("/v1/payments", params={"wait": 0}, json=payment(NEVER_ACTS))
    assert (answer.status_code, answer.json()["status"]) == (201, "pending")
    refid = answer.json()["refid"]
    assert pair[0].read(refid, wait=0)["status"] == "pending"
    assert time.monotonic() - began < 3
    pays(pair[1], simulator, refid)
    assert pair[0].read(refid, wait=60)["status"] == "succeeded"


def test_without_a_bell_it_is_found_by_looking(pair: Pair, simulator: Simulator) -> None:
    """With the listening connections cut, a wait ends some seconds late; they come back, and it is at once again."""
    if is_pooled(pair):
        pytest.skip("nobody listens through a pooler")
    query(pair[0].database_url, f"SELECT pg_terminate_backend(pid) {_LISTENERS}")
    assert delay(pair, simulator) < 9
    hear_each_other(pair)
    eventually(lambda: delay(pair, simulator) < 0.4, seconds=30)


def test_behind_a_pooler_it_is_found_by_looking(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """A service that cannot listen looks every half second, for all who wait at once."""
    with two(tmp_path, new_database(), simulator, {"DATABASE_POOLED": "true"}) as services:
        delays = sorted(delay(services, simulator) for _ in range(5))
    assert delays[2] < 2, delays


def test_nothing_happens_unheard_between_looking_and_listening(pair: Pair, simulator: Simulator) -> None:
    """Forty waits begin at the moment at which the payment ends, ten times: none of them waits for a later look."""
    took: list[float] = []
    for _ in range(10):
        refid = pair[1].start(NEVER_ACTS)["refid"]
        simulator.settle(refid, "01", postback=False)
        request = spoken("GET", f"/v1/payments/{refid}?wait=30", authorization=f"Bearer {pair[0].key}")
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            checked = pool.submit(pair[1].http.post, f"/v1/payments/{refid}/check")
            answers = at_once(pair[0].url, [request] * 40, seconds=35)
            took.append(time.monotonic() - began)
            assert checked.result().json()["status"] == "succeeded"
        assert {answer.json()["status"] for answer in answers} == {"succeeded"}
    # Whoever has missed it is told within five seconds: some of ten would be told late.
    assert sorted(took)[-2] < 2.5, took


async def waits(service: Service, count: int) -> None:
    """Return when so many wait at a service."""
    await asyncio.to_thread(eventually, lambda: metric(service, "kpayd_waits") == count)


async def ask(url: str, request: bytes) -> Open:
    """Send one request and do not wait for its answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    return reader, writer


async def answered(asked: Sequence[Open], seconds: float) -> list[bytes]:
    """Return all answers; fails where they are not there in time."""
    try:
        async with asyncio.timeout(seconds):
            return [await reader.read() for reader, _ in asked]
    finally:
        for _, writer in asked:
            writer.close()


def test_two_thousand_wait_without_a_connection_each(pair: Pair, simulator: Simulator) -> None:
    """2,000 calls that wait cost no database connection; others are served meanwhile; all are answered in the end."""
    one, other = pair
    refids = [one.start(NEVER_ACTS)["refid"] for _ in range(20)]
    sql = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'kpayd'"

    async def run() -> list[bytes]:
        asked: list[Open] = []
        for refid in refids:  # 100 at a time: more than 256 reads at once are turned away
            request = spoken("GET", f"/v1/payments/{refid}?wait=60", authorization=f"Bearer {one.key}")
            asked += await asyncio.gather(*(ask(one.url, request) for _ in range(100)))
            await waits(one, len(asked))
        # The pools of both services, and what listens.
        assert (await asyncio.to_thread(query, one.database_url, sql))[0]["n"] <= 2 * (10 + 2 + 6 + 1)
        took = []
        for refid in refids[:9]:
            began = time.monotonic()
            await asyncio.to_thread(one.read, refid)
            took.append(time.monotonic() - began)
        assert sorted(took)[4] < 0.5, took
        for refid in refids:
            await asyncio.to_thread(pays, other, simulator, refid)
        return await answered(asked, 20)

    answers = asyncio.run(run())
    assert len(answers) == 2_000
    assert {answer[:15] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert all(b'"status":"succeeded"' in answer for answer in answers)
    eventually(lambda: metric(one, "kpayd_waits") == 0)


def test_who_goes_frees_its_place(pair: Pair) -> None:
    """Fifty who wait and go are not waited for."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    request = spoken("GET", f"/v1/payments/{refid}?wait=60", authorization=f"Bearer {pair[0].key}")

    async def run() -> None:
        asked = [await ask(pair[0].url, request) for _ in range(50)]
        await waits(pair[0], 50)
        for _, writer in asked:
            writer.transport.abort()
        await waits(pair[0], 0)

    asyncio.run(run())


def test_starts_that_wait_hold_up_no_start(pair: Pair) -> None:
    """300 starts wait for payers who never act, more than may be under way at once, and one more start is 201."""
    head = {"authorization": f"Bearer {pair[0].key}", "content_type": "application/json"}

    async def run() -> None:
        asked = []
        body = httpx2.Request("POST", "http://x", json=payment(NEVER_ACTS)).content
        request = spoken("POST", "/v1/payments?wait=60", body, **head)
        for count in range(50, 301, 50):
            asked += await asyncio.gather(*(ask(pair[0].url, request) for _ in range(50)))
            await waits(pair[0], count)
        assert (await asyncio.to_thread(pair[0].start, NEVER_ACTS))["status"] == "pending"
        for _, writer in asked:
            writer.transport.abort()
        await waits(pair[0], 0)

    asyncio.run(run())


def test_the_end_of_a_service_answers_who_waits(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """SIGTERM answers at once who waits, and who comes while the service stops, with the payment as it is."""
    with run_service(tmp_path, new_database(), simulator, CALM | {"STOP_DELAY": "8"}) as service:
        refid = service.start(NEVER_ACTS)["refid"]
        request = spoken("GET", f"/v1/payments/{refid}?wait=60", authorization=f"Bearer {service.key}")

        async def run() -> None:
            asked = [await ask(service.url, request) for _ in range(50)]
            await waits(service, 50)
            service.process.child.terminate()
            answers = await answered(asked, 7)
            late = await answered([await ask(service.url, request)], 8)
            assert {answer[:15] for answer in (*answers, *late)} == {b"HTTP/1.1 200 OK"}
            assert all(b'"status":"pending"' in answer for answer in (*answers, *late))

        asyncio.run(run())
        assert service.process.child.wait(30) == 0


def test_a_start_that_waits_is_201_whatever_becomes_of_the_database(
    new_database: Callable[[], str], postgres: Postgres, simulator: Simulator, tmp_path: Path
) -> None:
    """What K-Pay was sent is never answered by "nothing was sent", though the database goes while a start waits."""
    refid = new_refid()
    with (
        running_proxy(upstream(postgres)) as proxy,
        run_service(tmp_path, through(new_database(), proxy.port), simulator, CALM) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        request = payment(NEVER_ACTS, refid=refid)
        future = pool.submit(service.http.post, "/v1/payments", params={"wait": 3}, json=request)
        eventually(lambda: metric(service, "kpayd_waits") == 1)
        proxy.set(Fault.REFUSE)
        answer = future.result()
        proxy.set(Fault.NONE)
    assert simulator.requests(refid) == 1
    assert (answer.status_code, answer.json()["status"]) == (201, "pending"), answer.text
