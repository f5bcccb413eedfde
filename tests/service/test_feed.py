"""The feed of events: whole, in the order of the commits, nothing skipped and nothing twice, whoever publishes."""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx2
import pytest

from app import feed
from app.bell import Bell
from app.database import UNAVAILABLE, Database, async_url, open_database
from app.domain import Evidence, Rules, Says, Source
from app.intake import Intake, Policy
from app.orders import NewPayment, Terms, record
from app.publish import Publisher
from tests.support import Json, Service, Simulator, eventually, new_refid, payment, query, run_service

NEVER_ACTS = "250780000005"
CALM = {"CHECK_SCHEDULE": "60", "POSTBACK_RECHECKS": "0.3,0.6,1"}
"""Nobody looks at a payment by himself: what is asked for is what happens."""

ORDER = NewPayment(**payment(), currency="RWF", bankid="63510", cnumber="250788312934")
TERMS = Terms("pay.example.rw", 30, 86_400, 3_600)
POLICY = Policy(Rules(120, (3_600,), (3_600,)), frozenset())
PENDING = Evidence(Source.GATEWAY_REPLY, Says.PENDING, tid="A1")

_IN_ORDER = "SELECT refid, seq, position FROM events WHERE client = $1 AND position IS NOT NULL ORDER BY position"
_AGE = "INSERT INTO events (refid, seq, type, source, status, created_at) VALUES ($1, $2, $3, 'clock', 'pending', $4)"


@pytest.fixture(scope="module")
def calm(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service where nothing happens by itself."""
    with run_service(tmp_path_factory.mktemp("calm"), new_database(), simulator, CALM) as service:
        yield service


@pytest.fixture
def caller(calm: Service) -> Iterator[httpx2.Client]:
    """Return a client of its own, whose feed is empty."""
    with calm.client(calm.new_key(new_refid())) as client:
        yield client


def start(caller: httpx2.Client, number: str = NEVER_ACTS) -> str:
    """Start a payment and return its refid."""
    answer = caller.post("/v1/payments", json=payment(number))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["refid"])


def page(caller: httpx2.Client, after: str | None = None, limit: int = 1_000) -> Json:
    """Return one page of a feed."""
    params = {"limit": limit} | ({"after": after} if after else {})
    body: Json = caller.get("/v1/events", params=params).raise_for_status().json()
    return body


def whole(caller: httpx2.Client, limit: int = 1_000) -> list[Json]:
    """Return a feed from its beginning, page by page, as the documentation tells a consumer to read it."""
    items: list[Json] = []
    cursor = None
    while (found := page(caller, cursor, limit))["items"]:
        assert len(found["items"]) <= limit
        assert found["next_cursor"] == found["items"][-1]["id"]
        items += found["items"]
        cursor = found["next_cursor"]
    assert found["next_cursor"] == cursor
    return items


def holds(caller: httpx2.Client, count: int) -> list[Json]:
    """Wait until a feed has `count` events and return them."""
    found = eventually(lambda: len(items := whole(caller)) >= count and items)
    assert len(found) == count
    return list(found)


def refids_of(caller: httpx2.Client) -> set[str]:
    """Return the payments that a feed tells of."""
    return {each["refid"] for each in whole(caller)}


def test_pages_of_any_size_are_the_whole(caller: httpx2.Client) -> None:
    """A feed read by pages of 1, 2, 3, 7 or 1000 is the same, in order for each payment; its end gives the cursor."""
    assert page(caller) == {"items": [], "next_cursor": None}
    refids = [start(caller) for _ in range(4)]
    events = holds(caller, 8)
    for limit in (1, 2, 3, 7, 1_000):
        assert whole(caller, limit) == events
    assert [each["type"] for each in events if each["refid"] == refids[0]] == ["payment.created", "payment.pending"]
    assert {each["id"] for each in events} == {f"evt_{refid}_{seq}" for refid in refids for seq in (1, 2)}
    last = events[-1]["id"]
    assert page(caller, last) == {"items": [], "next_cursor": last}
    assert page(caller, events[2]["id"], 3) == {"items": events[3:6], "next_cursor": events[5]["id"]}


def test_an_event_tells_the_payment_as_it_was_then(caller: httpx2.Client, calm: Service) -> None:
    """Each event has its five members, and as data the payment of that moment, whatever came later."""
    refid = start(caller, "250780000000")
    ended = caller.get(f"/v1/payments/{refid}", params={"wait": 20}).json()
    query(calm.database_url, "UPDATE payments SET statusdesc = 'later', review_reasons = '{forgotten}'")
    made, begun, paid = holds(caller, 3)
    assert {frozenset(each) for each in (made, begun, paid)} == {
        frozenset({"id", "type", "refid", "timestamp", "data"})
    }
    assert [each["data"]["status"] for each in (made, begun, paid)] == ["created", "pending", "succeeded"]
    assert [each["type"] for each in (made, begun, paid)] == [
        *("payment.created", "payment.pending", "payment.succeeded")
    ]
    assert [bool(each["data"]["tid"]) for each in (made, begun, paid)] == [False, True, True]
    assert [each["data"]["final_at"] for each in (made, begun)] == [None, None]
    assert made["data"].keys() == ended.keys()
    told = {"updated_at", "checked_at"}  # a postback's evidence may have come after
    assert {name: paid["data"][name] for name in ended.keys() - told} == {
        name: ended[name] for name in ended.keys() - told
    }
    assert made["timestamp"] <= begun["timestamp"] <= paid["timestamp"]


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "x", "", "9" * 30, "%00"])
def test_a_limit_that_is_none(limit: str, caller: httpx2.Client) -> None:
    """A limit outside 1 to 1000 is 422 and named."""
    answer = caller.get(f"/v1/events?limit={limit}")
    assert (answer.status_code, [each["field"] for each in answer.json()["errors"]]) == (422, ["limit"])


def test_a_cursor_that_is_none(caller: httpx2.Client, calm: Service) -> None:
    """A cursor that is no event of this client's feed is 422 and named: junk, unknown, evidence, another client's."""
    mine, others = start(caller, "250780000012"), calm.start(NEVER_ACTS)["refid"]
    caller.get(f"/v1/payments/{mine}", params={"wait": 20})
    seen = eventually(
        lambda: [e for e in caller.get(f"/v1/payments/{mine}/events").json()["items"] if e["type"] == "evidence"]
    )
    eventually(lambda: len(whole(calm.http)) >= 2)
    holds(caller, 3)
    junk = [
        "",
        "x",
        "evt_",
        f"evt_{mine}",
        f"evt_{mine}_0",
        f"evt_{mine}_-1",
        f"evt_{mine}_1 ",
        "%00",
        "1",
        "%F0%9F%8E%89",
    ]
    none = [f"evt_{mine}_999", f"evt_{mine}_999999999", f"evt_{mine}_9999999999", f"evt_{new_refid()}_1", "a" * 5_000]
    for cursor in [*junk, *none, f"evt_{mine}_{seen[0]['seq']}", f"evt_{others}_1"]:
        answer = caller.get(f"/v1/events?after={cursor}")
        assert answer.status_code == 422, cursor
        assert [each["field"] for each in answer.json()["errors"]] == ["after"]


def test_a_feed_is_its_clients_own(caller: httpx2.Client, calm: Service) -> None:
    """A client sees its own events only, and needs the scope to see any."""
    mine, others = start(caller), calm.start(NEVER_ACTS)["refid"]
    assert {each["refid"] for each in holds(caller, 2)} == {mine}
    eventually(lambda: others in refids_of(calm.http))
    assert mine not in refids_of(calm.http)
    with calm.client(calm.new_key(new_refid(), "payments:read", "payments:write", "tokens:write")) as scoped:
        for path in ("/v1/events", "/v1/events/stream"):
            assert scoped.get(path).status_code == 403
    with calm.client(calm.new_key(new_refid(), "events:read")) as scoped:
        assert page(scoped) == {"items": [], "next_cursor": None}
    assert httpx2.get(f"{calm.url}/v1/events", trust_env=False).status_code == 401


async def connect(url: str) -> asyncpg.Connection:
    """Return a bare connection."""
    return await asyncpg.connect(async_url(url).replace("+asyncpg", ""))


def test_a_slow_transaction_is_not_skipped(caller: httpx2.Client, calm: Service) -> None:
    """What was written first and committed last comes after the cursor that was handed out in between."""

    async def run() -> tuple[list[Json], list[Json], str]:
        refid = await asyncio.to_thread(start, caller)
        before = await asyncio.to_thread(holds, caller, 2)
        slow = await connect(calm.database_url)
        try:
            async with slow.transaction():
                await slow.execute("UPDATE payments SET last_seq = last_seq + 1 WHERE refid = $1", refid)
                await slow.execute(
                    _AGE, refid, 3, "payment.needs_review", datetime.fromisoformat(before[-1]["timestamp"])
                )
                for _ in range(3):
                    await asyncio.to_thread(start, caller)
                between = await asyncio.to_thread(holds, caller, 8)
        finally:
            await slow.close()
        return between, await asyncio.to_thread(holds, caller, 9), refid

    between, after, refid = asyncio.run(run())
    assert after[:-1] == between
    assert after[-1]["id"] == f"evt_{refid}_3"
    assert page(caller, between[-1]["id"])["items"] == after[-1:]


def test_a_clock_that_was_set_back_turns_nothing_round(caller: httpx2.Client, calm: Service) -> None:
    """The events of one payment come in the order of their numbers, whatever their times say."""
    refid = start(caller)
    holds(caller, 2)
    aged = """INSERT INTO events (refid, seq, type, source, status, created_at)
              SELECT $1, n, 'payment.needs_review', 'clock', 'pending', now() - n * interval '1 hour'
              FROM generate_series(3, 12) AS n ORDER BY n DESC"""
    query(calm.database_url, aged, refid)
    assert [each["id"] for each in holds(caller, 12)] == [f"evt_{refid}_{seq}" for seq in range(1, 13)]


def test_events_of_older_code_come_too(caller: httpx2.Client, calm: Service) -> None:
    """An event written without a state tells the payment as it is now."""
    refid = start(caller)
    holds(caller, 2)
    old = """INSERT INTO events (refid, seq, type, source, status)
             VALUES ($1, 3, 'payment.succeeded', 'clock', 'succeeded')"""
    query(calm.database_url, old, refid)
    event = holds(caller, 3)[-1]
    assert (event["id"], event["type"]) == (f"evt_{refid}_3", "payment.succeeded")
    assert event["data"] == caller.get(f"/v1/payments/{refid}").json()


@asynccontextmanager
async def databases(url: str, count: int) -> AsyncIterator[list[Database]]:
    """Yield several pools, as several processes would have them."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_database(url, pool=3)) for _ in range(count)]


async def _follow(database: Database, client: str, over: asyncio.Event) -> list[tuple[str, int]]:
    """Read a feed by its cursor all the while, and once more when all is published."""
    seen: list[tuple[str, int]] = []
    position = 0
    while True:
        last = over.is_set()
        while rows := await feed.after(database, client, position, 7):
            seen += [(row.refid, row.event_seq) for row in rows]
            position = rows[-1].event_position
        if last:
            return seen
        await asyncio.sleep(0.001)


def test_many_publishers_at_once_make_one_feed(new_database: Callable[[], str]) -> None:
    """Four who publish while 160 payments go on give every event one position, without gaps; no reader misses one."""
    url = new_database()

    async def play(database: Database, client: str) -> None:
        intake = Intake(database, POLICY, Bell())
        for _ in range(20):
            row, _ = await record(database, ORDER, client, None, TERMS)
            await intake.take_in(row.refid, PENDING)
            paid = Evidence(Source.CHECKSTATUS, Says.PAID, tid="A1", momtransactionid=row.refid, statusid="01")
            await intake.take_in(row.refid, paid)

    async def publish(database: Database, over: asyncio.Event) -> None:
        publisher = Publisher(database, Bell())
        while await publisher.publish() or not over.is_set():  # noqa: ASYNC110 - it goes on all the while
            await asyncio.sleep(0)

    async def run() -> Sequence[list[tuple[str, int]]]:
        played, published = asyncio.Event(), asyncio.Event()
        async with databases(url, 6) as pools:
            readers = [asyncio.create_task(_follow(pools[n], client, published)) for n, client in enumerate("ab")]
            publishers = [asyncio.create_task(publish(pool, played)) for pool in pools[:4]]
            await asyncio.gather(*(play(pools[n % 6], "ab"[n % 2]) for n in range(8)))
            played.set()
            await asyncio.gather(*publishers)
            published.set()
            return await asyncio.gather(*readers)

    seen = dict(zip("ab", asyncio.run(run()), strict=True))
    positions = query(url, "SELECT position FROM events WHERE type <> 'evidence' ORDER BY position")
    assert [row["position"] for row in positions] == list(range(1, 481))
    assert query(url, "SELECT last FROM feed")[0]["last"] == 480
    for client, events in seen.items():
        assert events == [(row["refid"], row["seq"]) for row in query(url, _IN_ORDER, client)]
        numbers = defaultdict(list)
        for refid, seq in events:
            numbers[refid].append(seq)
        assert set(map(tuple, numbers.values())) == {(1, 2, 3)}


def test_a_publisher_that_was_killed_is_replaced(
    caller: httpx2.Client, calm: Service, simulator: Simulator, tmp_path: Path
) -> None:
    """Of two services one is killed while it starts payments: the other publishes what it committed."""
    with run_service(tmp_path, calm.database_url, simulator, CALM) as other:
        with other.client(caller.headers["authorization"].removeprefix("Bearer ")) as theirs:
            refids = [start(theirs) for _ in range(5)]
        other.process.kill()
    events = holds(caller, 10)
    assert {each["id"] for each in events} == {f"evt_{refid}_{seq}" for refid in refids for seq in (1, 2)}


def test_a_publisher_that_froze_holds_up_the_others_for_seconds_only(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """A process that stands still while it has the feed's lock loses it: the database ends its transaction."""
    url = new_database()
    sql = (
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'UPDATE events%'"
    )

    async def publish() -> float:
        """Publish as another process does, and return after how many seconds it could."""
        began = time.monotonic()
        async with open_database(url, pool=1) as database:
            while time.monotonic() - began < 30:
                with suppress(*UNAVAILABLE):
                    if await Publisher(database, Bell()).publish():
                        break
                await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def run(service: Service) -> float:
        lock, row = await connect(url), await connect(url)
        try:
            async with row.transaction():
                async with lock.transaction():  # nobody publishes until the payment's event is held
                    await lock.execute("SELECT FROM feed FOR UPDATE")
                    async with open_database(url, pool=1) as database:
                        await record(database, ORDER, "shop", None, TERMS)
                    await row.execute("SELECT FROM events FOR UPDATE")

                def held() -> bool:
                    return bool(query(url, f"{sql} AND wait_event_type = 'Lock'")[0]["n"])

                await asyncio.to_thread(eventually, held, every=0.02)
                service.process.child.send_signal(signal.SIGSTOP)
            held_by = f"{sql} AND state = 'idle in transaction'"
            await asyncio.to_thread(eventually, lambda: query(url, held_by)[0]["n"])
        finally:
            await lock.close()
            await row.close()
        return await publish()

    with run_service(tmp_path, url, simulator, CALM) as service:
        seconds = asyncio.run(run(service))
        service.process.child.send_signal(signal.SIGCONT)
        assert 1 < seconds < 15
        assert query(url, "SELECT last FROM feed")[0]["last"] == 1
        refid = service.start(NEVER_ACTS)["refid"]
        eventually(lambda: refid in refids_of(service.http))
    positions = query(url, "SELECT position FROM events WHERE type <> 'evidence' ORDER BY position")
    assert [each["position"] for each in positions] == [1, 2, 3]
