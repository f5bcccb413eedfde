"""The stream of events: what the feed tells, as it happens; resumable, and no burden to anybody else."""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import asyncpg
import httpx2
import pytest

from app.database import async_url
from app.models import payments
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
CALM = {"CHECK_SCHEDULE": "60", "POSTBACK_RECHECKS": "0.3,0.6,1"}
PATH = "/v1/events/stream"


@pytest.fixture(scope="module")
def pair(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """Run two services over one database."""
    folder, url = tmp_path_factory.mktemp("pair"), new_database()
    with run_service(folder, url, simulator, CALM) as one, run_service(folder, url, simulator, CALM) as other:
        yield one, other


@pytest.fixture
def key(pair: tuple[Service, Service]) -> str:
    """Return the key of a client of its own, whose feed is empty."""
    return pair[0].new_key(new_refid())


class Stream:
    """One stream that is read event by event."""

    def __init__(self, answer: HTTPResponse) -> None:
        self.answer = answer

    def lines(self) -> list[str]:
        """Return the next block of lines, up to an empty one; nothing where the stream has ended."""
        block: list[str] = []
        while (line := self.answer.readline().decode()) not in {"", "\n"}:
            block.append(line.removesuffix("\n"))
        return block

    def next(self) -> dict[str, str]:
        """Return the next event by field."""
        while True:
            block = dict(line.split(": ", 1) for line in self.lines())
            if "data" in block:
                return block


@contextmanager
def listening(service: Service, key: str, last: str | None = None, *, seconds: float = 20) -> Iterator[Stream]:
    """Open a stream; `seconds` is how long it may be silent."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=seconds)
    headers = {"Authorization": f"Bearer {key}"} | ({"Last-Event-ID": last} if last else {})
    try:
        connection.request("GET", PATH, headers=headers)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield Stream(answer)
    finally:
        connection.close()


def feed(service: Service, key: str) -> list[Json]:
    """Return a whole feed."""
    items: list[Json] = []
    with service.client(key) as http:
        while True:
            params = {"limit": 1_000} | ({"after": items[-1]["id"]} if items else {})
            found = http.get("/v1/events", params=params).raise_for_status().json()["items"]
            if not found:
                return items
            items += found


def holds(service: Service, key: str, count: int) -> list[Json]:
    """Wait until a feed has `count` events and return them."""
    found = eventually(lambda: len(items := feed(service, key)) >= count and items, seconds=30)
    assert len(found) == count
    return list(found)


def start(service: Service, key: str, count: int = 1, number: str = NEVER_ACTS) -> list[str]:
    """Start payments and return their refids."""
    with service.client(key) as http:
        answers = [http.post("/v1/payments", json=payment(number)) for _ in range(count)]
    return [str(answer.raise_for_status().json()["refid"]) for answer in answers]


def make_events(service: Service, key: str, count: int, size: int) -> list[str]:
    """Put `count` events of about `size` bytes each into a feed and return their ids in its order."""
    (model,) = start(service, key)
    names = [column.name for column in payments.c if column.name not in {"refid", "metadata"}]
    copies = f"""INSERT INTO payments (refid, metadata, {", ".join(names)})
                 SELECT 'm' || n || '-' || refid, jsonb_build_object('a', repeat('x', $3)), {", ".join(names)}
                 FROM payments, generate_series(1, $2::int) AS n WHERE refid = $1"""  # noqa: S608 - our own columns
    query(service.database_url, copies.replace("$1", "$1::text"), model, count, size)
    told = """INSERT INTO events (refid, seq, type, source, status)
              SELECT refid, 9, 'payment.needs_review', 'clock', 'pending' FROM payments
              WHERE refid LIKE 'm%-' || $1"""
    query(service.database_url, told, model)
    return [each["id"] for each in holds(service, key, count + 2)]


def memory(service: Service) -> int:
    """Return how many bytes of memory a service has."""
    status = Path(f"/proc/{service.process.child.pid}/status").read_text()
    return next(int(line.split()[1]) * 1_024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_a_stream_tells_what_the_feed_tells(pair: tuple[Service, Service], key: str) -> None:
    """The same events in the same order, each with its id, type and the feed's own item; then what comes."""
    start(pair[0], key, 3)
    events = holds(pair[0], key, 6)
    with listening(pair[0], key) as stream:
        assert stream.answer.headers["cache-control"] == "no-store"
        assert stream.lines()[0].startswith("retry: ")
        for expected in events:
            event = stream.next()
            assert event.keys() == {"id", "event", "data"}
            assert (event["id"], event["event"]) == (expected["id"], expected["type"])
            assert json.loads(event["data"]) == expected
        (refid,) = start(pair[0], key)
        assert [stream.next()["id"] for _ in range(2)] == [f"evt_{refid}_1", f"evt_{refid}_2"]


def test_a_stream_goes_on_where_it_was_cut(pair: tuple[Service, Service], key: str) -> None:
    """Cut off again and again while payments go on, a reader that gives its last id has each event once, in order."""
    chance = random.Random(52)  # noqa: S311 - it must come again
    going = threading.Thread(target=lambda: [start(pair[n % 2], key, 1, "250780000000") for n in range(25)])
    going.start()
    seen: list[str] = []
    cuts = 0
    while len(seen) < 75:
        with listening(pair[cuts % 2], key, seen[-1] if seen else None) as stream:
            seen += [stream.next()["id"] for _ in range(min(chance.randint(1, 6), 75 - len(seen)))]
        cuts += 1
    going.join()
    assert cuts > 12
    assert seen == [event["id"] for event in holds(pair[0], key, 75)]


def test_a_last_event_id_that_is_none(pair: tuple[Service, Service], key: str) -> None:
    """An id that is no event of this client's is 422 and named; an empty one means from the beginning."""
    (others,) = start(pair[0], pair[0].key)
    eventually(lambda: others in str(feed(pair[0], pair[0].key)))
    for last in ("x", "evt_x_1", f"evt_{others}_1", f"evt_{others}_99999999999", "a" * 5_000, "\xff", "\x80\x81"):
        request = spoken("GET", PATH, authorization=f"Bearer {key}")
        request = request[:-2] + b"Last-Event-ID: " + last.encode("latin-1") + b"\r\n\r\n"
        (said,) = at_once(pair[0].url, [request])
        assert said.status == 422, last
        assert [each["field"] for each in said.json()["errors"]] == ["last-event-id"]
    (refid,) = start(pair[0], key)
    with listening(pair[0], key, "") as stream:
        assert stream.next()["id"] == f"evt_{refid}_1"


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE"])
def test_a_stream_is_got(method: str, pair: tuple[Service, Service], key: str) -> None:
    """Every other method than GET is 405."""
    with pair[0].client(key) as http:
        answer = http.request(method, PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_another_replicas_events_come_at_once(pair: tuple[Service, Service], key: str) -> None:
    """A stream at one service tells what the other has done long before it would look for itself."""
    took = []
    with listening(pair[0], key) as stream:
        stream.lines()
        for _ in range(5):
            (refid,) = start(pair[1], key)
            began = time.monotonic()
            assert [stream.next()["id"] for _ in range(2)] == [f"evt_{refid}_1", f"evt_{refid}_2"]
            took.append(time.monotonic() - began)
    assert sorted(took)[2] < 1, took


def test_a_stream_is_its_clients_own(pair: tuple[Service, Service], key: str) -> None:
    """Nobody is told of another client's payments."""
    with listening(pair[0], key) as stream:
        (others,) = start(pair[0], pair[0].key)
        eventually(lambda: others in str(feed(pair[0], pair[0].key)))
        (mine,) = start(pair[0], key)
        assert stream.next()["id"] == f"evt_{mine}_1"


def test_who_goes_frees_its_place(pair: tuple[Service, Service], key: str) -> None:
    """Forty readers that are there are counted, and when they have gone, none is."""
    eventually(lambda: metric(pair[0], "kpayd_streams") == 0)  # those of the tests before
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(listening(pair[0], key))
        eventually(lambda: metric(pair[0], "kpayd_streams") == 40)
    eventually(lambda: metric(pair[0], "kpayd_streams") == 0)


def test_silent_streams_are_kept_alive_and_ask_nothing(pair: tuple[Service, Service], key: str) -> None:
    """Where nothing happens a comment comes within fifteen seconds, though the events cannot be read meanwhile."""

    async def run() -> list[bytes]:
        request = spoken("GET", PATH, authorization=f"Bearer {key}")
        streams = [await _read_on(pair[0].url, request) for _ in range(20)]
        holder = await asyncpg.connect(async_url(pair[0].database_url).replace("+asyncpg", ""))
        try:
            for reader, _ in streams:
                await reader.readuntil(b"\n\n\r\n")  # when to come back
            await asyncio.sleep(6)  # until the process has looked for those who are new, too
            async with holder.transaction(), asyncio.timeout(24):
                await holder.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                beats = [await reader.readuntil(b"\n\n\r\n") for reader, _ in streams]
                await asyncio.sleep(3)  # whoever asks is told within two seconds that there is no answer
            await asyncio.to_thread(start, pair[1], key)
            async with asyncio.timeout(10):
                for reader, _ in streams:
                    await reader.readuntil(b"event: payment.created\n")
        finally:
            await holder.close()
            for _, writer in streams:
                writer.transport.abort()
        return beats

    assert {beat.partition(b"\r\n")[2] for beat in asyncio.run(run())} == {b": \n\n\r\n"}


def test_a_slow_reader_costs_little_and_delays_nobody(pair: tuple[Service, Service], key: str) -> None:
    """Of 30 MB of events a reader that takes nothing holds up a few; others have all, and so has it in the end."""
    ids = make_events(pair[0], key, 3_000, 10_000)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        host, _, port = pair[0].url.removeprefix("http://").partition(":")
        slow.connect((host, int(port)))
        before = memory(pair[0])
        slow.sendall(spoken("GET", PATH, authorization=f"Bearer {key}"))
        eventually(lambda: metric(pair[0], "kpayd_streams") == 1)
        time.sleep(1)  # for as long as it would take to send everything
        assert memory(pair[0]) - before < 12_000_000
        with listening(pair[0], key) as quick:
            assert [quick.next()["id"] for _ in ids] == ids
        assert httpx2.get(f"{pair[0].url}/healthz", trust_env=False).elapsed.total_seconds() < 3
        slow.settimeout(20)
        answer = HTTPResponse(slow)
        answer.begin()
        stream = Stream(answer)
        assert [stream.next()["id"] for _ in ids] == ids


async def _read_on(url: str, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    writer.write(request)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    return reader, writer


def test_the_end_of_a_service_ends_its_streams(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """SIGTERM ends 200 streams as they should end, a new one is told to come again, and the process is gone soon."""

    async def run(service: Service) -> list[bytes]:
        request = spoken("GET", PATH, authorization=f"Bearer {service.key}")
        streams = [await _read_on(service.url, request) for _ in range(200)]
        await asyncio.to_thread(eventually, lambda: metric(service, "kpayd_streams") == 200)
        service.process.child.terminate()
        async with asyncio.timeout(10):
            ends = [await reader.read() for reader, _ in streams]
        refused = await asyncio.to_thread(service.http.get, PATH)
        assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
        assert "retry-after" in refused.headers
        for _, writer in streams:
            writer.close()
        return ends

    with run_service(tmp_path, new_database(), simulator, CALM | {"STOP_DELAY": "8"}) as service:
        ends = asyncio.run(run(service))
        assert service.process.child.wait(30) == 0
    assert all(end.endswith(b"\r\n0\r\n\r\n") for end in ends)


def test_a_slow_reader_does_not_hold_up_the_end(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """A reader that takes nothing keeps no process alive."""
    with run_service(tmp_path, new_database(), simulator, CALM) as service, socket.socket() as slow:
        make_events(service, service.key, 600, 10_000)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        host, _, port = service.url.removeprefix("http://").partition(":")
        slow.connect((host, int(port)))
        slow.sendall(spoken("GET", PATH, authorization=f"Bearer {service.key}"))
        eventually(lambda: metric(service, "kpayd_streams") == 1)
        time.sleep(0.5)
        assert service.process.stop(15) == 0
