"""Notifications: what is told to whom, receivers that ask for peace or are given up, crashes and replicas."""

import asyncio
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import httpx2
import pytest

from app.clients import Clients, Credentials
from app.database import open_database
from tests.conftest import QUICK
from tests.receiver import OK, Got, Receiver, run_receiver
from tests.support import (
    Json,
    Service,
    Simulator,
    eventually,
    kpayd,
    metric,
    new_refid,
    payment,
    query,
    run_command,
    run_service,
)

DISABLE_AFTER = 8
"""Seconds: long beside the schedule, so that a machine that stands still for a while gives nobody up."""
SETTINGS = QUICK | {
    "WEBHOOK_HOSTS": "127.0.0.1",
    "WEBHOOK_SCHEDULE": "0.2,0.3,0.5",
    "WEBHOOK_TIMEOUT": "2",
    "WEBHOOK_DISABLE_AFTER": str(DISABLE_AFTER),
}
NEVER_PAYS, PAYS, PAID_AND_IN_DOUBT = "250780000005", "250780000000", "250780000022"
FAILS: tuple[int, dict[str, str]] = (500, {})
TOLD = ["payment.pending", "payment.succeeded"]

NewDatabase = Callable[[], str]


@dataclass(frozen=True)
class Shop:
    """One API client of a service."""

    name: str
    service: Service
    http: httpx2.Client

    def start(self, number: str = PAYS, **changes: object) -> str:
        """Start a payment and return its refid."""
        return str(self.http.post("/v1/payments", json=payment(number, **changes)).raise_for_status().json()["refid"])

    def items(self, path: str, **wanted: str) -> list[Json]:
        """Return what a call lists."""
        items: list[Json] = self.http.get(path, params=wanted).raise_for_status().json()["items"]
        return items

    def deliveries(self, state: str) -> dict[str, Json]:
        """Return this client's notifications by refid: one of each payment."""
        return {each["refid"]: each for each in self.items("/v1/deliveries", state=state)}

    def command(self, *arguments: str) -> str:
        """Run a command of `kpayd clients` about this client; return what it said."""
        done = run_command(self.service.env, "clients", arguments[0], self.name, *arguments[1:])
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def row(self) -> Json:
        """What `kpayd clients list` knows of this client."""
        rows: list[Json] = json.loads(run_command(self.service.env, "clients", "list", "--json").stdout)
        return next(row for row in rows if row["name"] == self.name)


Shops = Callable[..., list[Shop]]


@pytest.fixture
def shops() -> Iterator[Shops]:
    """Return a maker of clients, each with the URL that it is notified at, or None."""

    async def add(service: Service, urls: Sequence[str | None]) -> list[Credentials]:
        async with open_database(service.database_url, pool=1) as database:
            return [await Clients(database).add(f"shop-{uuid.uuid4().hex[:12]}", webhook_url=url) for url in urls]

    with ExitStack() as stack:

        def make(service: Service, *urls: str | None) -> list[Shop]:
            made = asyncio.run(add(service, urls))
            return [Shop(each.name, service, stack.enter_context(service.client(each.key))) for each in made]

        yield make


@pytest.fixture(scope="module")
def service(
    new_database: NewDatabase, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that tries again at once and gives receivers up within seconds."""
    with run_service(tmp_path_factory.mktemp("notified"), new_database(), simulator, SETTINGS) as service:
        yield service


def test_what_is_told_is_what_the_feed_has(service: Service, shops: Shops) -> None:
    """Every change after the start is told as the feed tells it, in its order; the start and mere evidence are not."""
    with run_receiver() as receiver:
        [shop] = shops(service, receiver.url)
        refid = shop.start(PAID_AND_IN_DOUBT)
        eventually(lambda: "payment.needs_review" in receiver.types(refid))
        late = {"tid": receiver.got[0].json["data"]["tid"], "refid": refid, "statusid": "02", "momtransactionid": ""}
        assert service.http.post(service.returl(refid), json=late).status_code == 200
        eventually(lambda: "evidence" in types_of(shop, refid) and len(receiver.got) == len(notified(shop, refid)))
        assert [got.id for got in receiver.got] == notified(shop, refid)
        feed = {each["id"]: each for each in shop.items("/v1/events")}
        assert list(feed)[1:] == notified(shop, refid)
        for got in receiver.got:
            assert got.json == {name: feed[got.id][name] for name in ("type", "timestamp", "data")}
            assert got.headers["content-type"] == "application/json"
            assert got.headers["user-agent"].startswith("kpayd/")
            assert "authorization" not in got.headers
        assert receiver.got[0].json["data"]["status"] == "pending"
        assert receiver.got[-1].json["data"]["review_reasons"]


def types_of(shop: Shop, refid: str) -> list[str]:
    """Return the types of a payment's timeline; its numbers count from 1."""
    return [each["type"] for each in shop.items(f"/v1/payments/{refid}/events")]


def notified(shop: Shop, refid: str) -> list[str]:
    """Return the ids of what a payment's client should have been told, in order."""
    told = enumerate(types_of(shop, refid), 1)
    return [f"evt_{refid}_{seq}" for seq, type_ in told if type_ not in ("payment.created", "evidence")]


def test_told_from_the_moment_there_is_a_url(service: Service, shops: Shops, simulator: Simulator) -> None:
    """A client that gives a URL is told what happens from then on; one that takes it away, of nothing more."""
    with run_receiver() as receiver:
        [shop] = shops(service, None)
        refid = shop.start(NEVER_PAYS)
        eventually(lambda: [each["type"] for each in shop.items("/v1/events")][1:] == ["payment.pending"])
        shop.command("webhook", receiver.url)
        simulator.settle(refid, "01")
        eventually(lambda: receiver.got)
        assert receiver.types(refid) == ["payment.succeeded"]
        shop.command("webhook", "--off")
        later = shop.start(NEVER_PAYS)
        eventually(lambda: {each["refid"] for each in shop.items("/v1/events")} == {refid, later})
        assert [each["refid"] for each in shop.items("/v1/deliveries")] == [refid]
        assert len(receiver.got) == 1


def test_fault_49_a_receiver_that_is_gone_is_left_alone_until_somebody_says_so(service: Service, shops: Shops) -> None:
    """410 ends a client's notifications at once and says so; what happens meanwhile is kept and can be sent later."""
    name = 'kpayd_receivers_disabled_total{reason="gone"}'
    before = metric(service, name)
    with run_receiver(lambda _: (410, {})) as receiver:
        [shop] = shops(service, receiver.url)
        first = shop.start(NEVER_PAYS)
        eventually(lambda: shop.deliveries("parked").keys() == {first})
        second = shop.start(NEVER_PAYS)
        parked = eventually(lambda: len(by := shop.deliveries("parked")) == 2 and by)
        assert parked[second]["attempts"] == 0
        assert parked[second]["error"] == "this client is not notified any more"
        assert [got.json["data"]["refid"] for got in receiver.got] == [first]
        assert metric(service, name) == before + 1
        assert shop.row["webhook_disabled_at"]
        told = [(each["type"], each["detail"]) for each in json.loads(shop.command("show", "--json"))]
        assert told == [("added", None), ("webhook_disabled", "the receiver answered 410")]
        entries = [json.loads(line) for line in service.process.words.splitlines() if shop.name in line]
        assert "notifications were disabled" in [each["event"] for each in entries if each["level"] == "error"]

        receiver.answer = lambda _: OK
        shop.command("webhook", receiver.url)
        third = shop.start(NEVER_PAYS)
        eventually(lambda: shop.deliveries("delivered").keys() == {third})
        assert shop.deliveries("parked").keys() == {first, second}
        assert shop.http.post("/v1/deliveries/retry").json() == {"retried": 2}
        eventually(lambda: shop.deliveries("delivered").keys() == {first, second, third})
        assert Counter(got.json["data"]["refid"] for got in receiver.got) == {first: 2, second: 1, third: 1}


def test_fault_49_nothing_but_failures_ends_notifications(service: Service, shops: Shops) -> None:
    """A receiver that has done nothing but fail for long is given up; one that took anything in between is not."""
    name = 'kpayd_receivers_disabled_total{reason="failing"}'
    before, good = metric(service, name), new_refid()
    with run_receiver(lambda got: OK if got.json["data"]["refid"] == good else FAILS) as receiver:
        bad, mixed = shops(service, f"{receiver.url}/bad", f"{receiver.url}/mixed")
        for shop in (bad, mixed):
            shop.start(NEVER_PAYS)
        eventually(lambda: bad.deliveries("parked") and mixed.deliveries("parked"))
        mixed.start(NEVER_PAYS, refid=good)
        eventually(lambda: mixed.deliveries("delivered"))
        eventually(lambda: failing_for(bad) > DISABLE_AFTER)
        assert metric(service, name) == before
        last = {shop: shop.start(NEVER_PAYS) for shop in (bad, mixed)}
        eventually(lambda: is_disabled(bad))
        eventually(lambda: failing_for(mixed) > 0)
        assert 0 < failing_for(mixed) < failing_for(bad) - DISABLE_AFTER / 2
        assert not is_disabled(mixed)
        assert metric(service, name) == before + 1
        assert eventually(lambda: bad.deliveries("parked").get(last[bad]))["attempts"] == 1
        sql = "SELECT client, detail FROM client_events WHERE type = 'webhook_disabled' AND client = any($1)"
        noted = query(service.database_url, sql, [bad.name, mixed.name])
        assert [tuple(row) for row in noted] == [(bad.name, f"the receiver has failed for 0:00:0{DISABLE_AFTER}")]


def failing_for(shop: Shop) -> float:
    """Return for how many seconds a receiver has done nothing but fail, by the database's clock."""
    sql = "SELECT coalesce(extract(epoch FROM now() - webhook_failing_since), 0) AS n FROM clients WHERE name = $1"
    return float(query(shop.service.database_url, sql, shop.name)[0]["n"])


def is_disabled(shop: Shop) -> bool:
    """Whether a client's notifications have been disabled."""
    sql = "SELECT webhook_disabled_at FROM clients WHERE name = $1"
    return query(shop.service.database_url, sql, shop.name)[0]["webhook_disabled_at"] is not None


def test_fault_49_slow_down_is_heard(service: Service, shops: Shops) -> None:
    """A receiver that says 429 or 503 gets none of its notifications until the time that it names is over."""
    until = int(time.time()) + 4
    asks = {
        "/hook/seconds": (429, {"retry-after": "3"}),
        "/hook/date": (503, {"retry-after": formatdate(until, usegmt=True)}),
    }
    with run_receiver(lambda got: OK if first_at(got, receiver) else asks[got.path]) as receiver:
        asking = shops(service, *(f"{receiver.url}{path.removeprefix('/hook')}" for path in asks))
        for shop in asking:
            shop.start(NEVER_PAYS)
        eventually(lambda: len(receiver.got) == 2)
        later = {shop: [shop.start(NEVER_PAYS) for _ in range(2)] for shop in asking}
        for shop, refids in later.items():
            eventually(lambda shop=shop, refids=refids: shop.deliveries("delivered").keys() >= set(refids))  # type: ignore[misc]
        arrivals = {path: [got.at for got in receiver.got if got.path == path] for path in asks}
        assert min(arrivals["/hook/seconds"][1:]) - arrivals["/hook/seconds"][0] >= 3
        assert min(arrivals["/hook/date"][1:]) + time.time() - time.monotonic() >= until - 0.1
        eventually(lambda: Counter(got.path for got in receiver.got) == dict.fromkeys(asks, 4))


def first_at(got: Got, receiver: Receiver) -> bool:
    """Whether something came to this path before."""
    return any(other.path == got.path for other in receiver.got if other is not got)


def test_fault_49_slow_down_holds_whatever_was_under_way(service: Service, shops: Shops) -> None:
    """A receiver that asked for peace keeps it, also when it takes a notification that was under way just then."""
    asked, refused, under_way = threading.Event(), new_refid(), new_refid()

    def answer(got: Got) -> tuple[int, dict[str, str]]:
        refid = got.json["data"]["refid"]
        if refid == under_way:
            asked.wait(1.5)
            time.sleep(0.2)  # so that this answer is the later one
        elif refid == refused and not asked.is_set():
            asked.set()
            return 429, {"retry-after": "3"}
        return OK

    with run_receiver(answer) as receiver:
        [shop] = shops(service, receiver.url)
        shop.start(NEVER_PAYS, refid=under_way)
        eventually(lambda: receiver.got)
        shop.start(NEVER_PAYS, refid=refused)
        eventually(lambda: under_way in shop.deliveries("delivered"))
        assert asked.is_set()
        shop.start(NEVER_PAYS)
        eventually(lambda: len(receiver.got) == 4)
        _, first, *others = receiver.got
        assert min(got.at for got in others) - first.at >= 3


def test_a_revoked_client_is_told_nothing(service: Service, shops: Shops, simulator: Simulator) -> None:
    """What waits for a client that is revoked is not sent any more, and nothing of what happens later."""
    with run_receiver(lambda _: (503, {"retry-after": "60"})) as receiver:
        [shop] = shops(service, receiver.url)
        refid = shop.start(NEVER_PAYS)
        eventually(lambda: receiver.got)
        shop.command("revoke")
        simulator.settle(refid, "01")
        sql = "SELECT type FROM events WHERE refid = $1 AND position IS NOT NULL ORDER BY seq"
        url = service.database_url
        eventually(lambda: [row["type"] for row in query(url, sql, refid)][1:] == TOLD)
        kept = "SELECT parked_at, next_at, error FROM deliveries WHERE refid = $1"
        eventually(lambda: [row["parked_at"] for row in query(url, kept, refid)] != [None])
        assert [(row["next_at"], row["error"]) for row in query(url, kept, refid)] == [
            (None, "this client is not notified any more")
        ]
        assert len(receiver.got) == 1


@pytest.mark.timeout(180)
def test_fault_52_replicas_and_a_kill(
    new_database: NewDatabase, simulator: Simulator, shops: Shops, tmp_path: Path
) -> None:
    """Workers that share the work tell everything once; what one was telling when it was killed is told again.

    And what is committed while none runs is told by the next.
    """
    database, over, held = new_database(), threading.Event(), new_refid()

    def answer(got: Got) -> tuple[int, dict[str, str]]:
        if got.json["data"]["refid"] == held and not over.is_set():
            over.wait(30)
            return FAILS
        return OK

    with run_receiver(answer) as receiver, run_service(tmp_path, database, simulator, SETTINGS, "--no-worker") as web:
        one, other = shops(web, receiver.url, receiver.url)
        before = [one.start() for _ in range(5)]
        assert not one.items("/v1/events")
        with kpayd(tmp_path, web.env, "worker") as worker:
            eventually(lambda: all(receiver.types(refid) == TOLD for refid in before), seconds=60)
            one.start(refid=held)
            eventually(lambda: receiver.of(held))
            worker.kill()
            over.set()
        with (
            kpayd(tmp_path, web.env, "worker") as second,
            run_service(tmp_path, database, simulator, SETTINGS) as third,
        ):
            eventually(lambda: "worker is up" in second.words, seconds=60)
            refids = [shop.start() for _ in range(30) for shop in (one, other)]
            eventually(lambda: len(receiver.got) >= 2 * len(before + refids) + 3, seconds=60)
            for shop in (one, other):
                eventually(lambda shop=shop: not shop.deliveries("waiting"))  # type: ignore[misc]
            share = metric(third, 'kpayd_notifications_total{outcome="delivered"}')
        assert receiver.types(held) == ["payment.pending", *TOLD]
        first, again, _ = receiver.of(held)
        assert (first.id, first.body) == (again.id, again.body)
        assert [receiver.types(refid) for refid in before + refids] == [TOLD] * len(before + refids)
        assert 0 < share < 2 * len(refids), "one of the two has done nothing"
