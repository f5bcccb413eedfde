"""Receivers of notifications that are down, slow, hostile or hard of hearing, beside others that are well."""

import asyncio
import gzip
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from standardwebhooks import WebhookVerificationError

from app.clients import Clients, Credentials
from app.database import open_database
from tests.conftest import QUICK
from tests.receiver import OK, Got, Receiver, run_receiver
from tests.support import Json, Service, Simulator, eventually, new_refid, payment, run_command, run_service
from tests.unit.servers import Behaviour, bound, floods, sends, serving

SCHEDULE = (0.4, 0.6, 1.2)
TIMEOUT = 4.0
SETTINGS = QUICK | {
    "WEBHOOK_HOSTS": "127.0.0.1",
    "WEBHOOK_SCHEDULE": ",".join(map(str, SCHEDULE)),
    "WEBHOOK_TIMEOUT": str(TIMEOUT),
    "WEBHOOK_DISABLE_AFTER": "3600",
}
LIVE = 50
NEVER_PAYS = "250780000005"
FAILS: tuple[int, dict[str, str]] = (500, {})


@dataclass(frozen=True)
class Shop:
    """One API client with a receiver of its own."""

    credentials: Credentials
    http: httpx2.Client

    @property
    def name(self) -> str:
        """The client's name."""
        return self.credentials.name

    def start(self, number: str = "250788312934", **changes: object) -> str:
        """Start a payment and return its refid."""
        return str(self.http.post("/v1/payments", json=payment(number, **changes)).raise_for_status().json()["refid"])

    def deliveries(self, state: str | None = None) -> list[Json]:
        """Return this client's notifications, newest first."""
        wanted = {"limit": 100} | ({"state": state} if state else {})
        items: list[Json] = self.http.get("/v1/deliveries", params=wanted).raise_for_status().json()["items"]
        return items

    def parked(self, *refids: str) -> Sequence[Json]:
        """Return the parked notifications once there is one of each of these payments, in their order."""
        found = eventually(
            lambda: (by := {each["refid"]: each for each in self.deliveries("parked")}).keys() >= set(refids) and by
        )
        return [found[refid] for refid in refids]


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that tries again within seconds."""
    with run_service(tmp_path_factory.mktemp("notified"), new_database(), simulator, SETTINGS) as service:
        yield service


Shops = Callable[..., list[Shop]]
"""Makes a client for each receiver's URL."""


@pytest.fixture
def shops(service: Service) -> Iterator[Shops]:
    """Return a maker of clients that are notified."""

    async def add(urls: Sequence[str]) -> list[Credentials]:
        async with open_database(service.database_url, pool=1) as database:
            return [await Clients(database).add(f"shop-{uuid.uuid4().hex[:12]}", webhook_url=url) for url in urls]

    with ExitStack() as stack:

        def make(*urls: str) -> list[Shop]:
            made = asyncio.run(add(urls))
            return [Shop(each, stack.enter_context(service.client(each.key))) for each in made]

        yield make


def delay(got: Got) -> float:
    """Return the seconds from an event to its arrival."""
    arrived = got.at + time.time() - time.monotonic()
    return arrived - datetime.fromisoformat(got.json["timestamp"]).timestamp()


def test_fault_49_dead_receivers_delay_no_other(service: Service, shops: Shops) -> None:
    """Beside a receiver that hangs and one that is down, each of 50 others is told of everything at once."""
    over = threading.Event()

    def hang(_: Got) -> tuple[int, dict[str, str]]:
        over.wait(60)
        return OK

    with run_receiver() as live, run_receiver(hang) as hanging, bound() as nobody:
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}/hook"
        stuck, refused, *well = shops(hanging.url, down, *(f"{live.url}/{n}" for n in range(LIVE)))
        waiting = [stuck.start(NEVER_PAYS) for _ in range(20)]  # more than are under way at once to one receiver
        unheard = refused.start(NEVER_PAYS)
        eventually(lambda: len(hanging.got) >= 16)
        told = {shop.start(): f"/hook/{number}" for number, shop in enumerate(well)}
        eventually(lambda: len(live.got) == 2 * LIVE, seconds=30)

        assert max(map(delay, live.got)) < TIMEOUT - 0.5
        for refid, path in told.items():
            assert live.types(refid) == ["payment.pending", "payment.succeeded"]
            assert {got.path for got in live.of(refid)} == {path}
        # Nothing is lost of the dead ones: one is given up after its attempts, the other's wait.
        [parked] = refused.parked(unheard)
        assert (parked["attempts"], parked["http_status"]) == (len(SCHEDULE) + 1, None)
        assert parked["error"] == "nobody takes the connection"
        assert {each["refid"] for each in stuck.deliveries("waiting")} == set(waiting)
        assert any(each["error"] == f"no answer within {TIMEOUT:g} s" for each in eventually(lambda: failed(stuck)))
        over.set()
        eventually(lambda: {each["refid"] for each in stuck.deliveries("delivered")} == set(waiting), seconds=30)


def failed(shop: Shop) -> list[Json]:
    """Return the notifications whose last attempt failed."""
    return [each for each in shop.deliveries() if each["error"]]


def test_fault_49_attempts_follow_the_schedule_and_then_wait_for_a_word(service: Service, shops: Shops) -> None:
    """Failed notifications are tried by the schedule, then parked, listed, and sent again on their owner's word."""
    with run_receiver(lambda _: FAILS) as receiver:
        one, two, three = shops(*[receiver.url] * 3)
        refids = [shop.start(NEVER_PAYS) for shop in (one, one, one, two, three)]
        first, second, third, fourth, fifth = refids
        parked = one.parked(first, second, third)
        [of_two], [of_three] = two.parked(fourth), three.parked(fifth)

        for refid in refids:
            arrivals = [got.at for got in receiver.of(refid)]
            gaps = [after - before for before, after in pairwise(arrivals)]
            assert len(gaps) == len(SCHEDULE)
            assert all(gap >= 0.9 * wait for gap, wait in zip(gaps, SCHEDULE, strict=True)), gaps
        assert {(each["attempts"], each["http_status"], each["error"]) for each in parked} == {(4, 500, "HTTP 500")}
        seen = json.loads(run_command(service.env, "deliveries", "list", "--json", "--client", one.name).stdout)
        assert [each["id"] for each in seen] == [each["id"] for each in one.deliveries("parked")]
        assert {(each["state"], each["client"]) for each in seen} == {("parked", one.name)}

        first_time = {got.id: got.body for got in receiver.got}
        receiver.got.clear()
        receiver.answer = lambda _: OK
        # What is another's is neither seen nor sent.
        assert [each["id"] for each in two.deliveries()] == [of_two["id"]]
        for theirs in (of_three["id"], "evt_nobodys_1", "nonsense"):
            answer = two.http.post(f"/v1/deliveries/{theirs}/retry")
            assert answer.status_code == 404 or answer.json() == {"retried": 0}
        assert one.http.post(f"/v1/deliveries/{parked[0]['id']}/retry").json() == {"retried": 1}
        assert two.http.post("/v1/deliveries/retry").json() == {"retried": 1}
        assert retry(service, parked[1]["id"]) == 1
        assert retry(service, "--client", one.name) == 1
        assert [each["id"] for each in three.deliveries("parked")] == [of_three["id"]]
        assert retry(service, "--all") >= 1
        for shop, its in ((one, {first, second, third}), (two, {fourth}), (three, {fifth})):
            eventually(lambda shop=shop, its=its: {each["refid"] for each in shop.deliveries("delivered")} == its)  # type: ignore[misc]
        assert sorted((got.id, got.body) for got in receiver.got) == sorted(first_time.items())


def retry(service: Service, *which: str) -> int:
    """Have notifications sent again by the operator's command; return how many."""
    return int(json.loads(run_command(service.env, "deliveries", "retry", *which, "--json").stdout)["retried"])


def test_fault_49_redirects_are_not_followed(service: Service, shops: Shops) -> None:
    """A receiver that sends a notification elsewhere has failed: nothing goes there."""
    with run_receiver() as elsewhere, run_receiver() as receiver:
        kinds = [301, 302, 303, 307, 308]
        which: dict[str, int] = {}

        def redirect(got: Got) -> tuple[int, dict[str, str]]:
            kind = which.setdefault(got.id, kinds[len(which) % len(kinds)])
            return kind, {"location": elsewhere.url}

        receiver.answer = redirect
        [shop] = shops(receiver.url)
        parked = shop.parked(*(shop.start(NEVER_PAYS) for _ in kinds))
        assert sorted(each["error"] for each in parked) == [f"HTTP {kind}" for kind in kinds]
        assert {each["attempts"] for each in parked} == {len(SCHEDULE) + 1}
        assert len(receiver.got) == len(kinds) * (len(SCHEDULE) + 1)
        assert not elsewhere.got


def memory(service: Service, name: str) -> int:
    """Return a figure of the service's memory in kB: `VmRSS` now, `VmHWM` the most so far."""
    lines = Path(f"/proc/{service.process.child.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def then_a_byte_a_second(start: bytes) -> Behaviour:
    """Return the behaviour of a server that begins, and then goes on a byte a second."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)

    return behave


def hostile() -> Mapping[str, tuple[Behaviour, str | None]]:
    """Return answers that a receiver should not give, and what each attempt ends with; None: it is received."""
    bomb = gzip.compress(bytes(200_000_000), 6)
    zipped = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb)
    heads = b"".join(b"X-Header-%d: %b\r\n" % (number, b"y" * 80) for number in range(10_000))
    cut = "the answer was cut off or cannot be read (RemoteProtocolError)"
    late = f"no answer within {TIMEOUT:g} s"
    return {
        "100 MB": (floods(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"), None),
        "endless": (floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"), None),
        "endless and an error": (floods(b"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\n"), "HTTP 500"),
        "gzip bomb": (sends(zipped), None),
        "10,000 headers": (sends(b"HTTP/1.1 200 OK\r\n%bContent-Length: 0\r\n\r\n" % heads), cut),
        "endless header": (floods(b"HTTP/1.1 200 OK\r\nX-Header: "), cut),
        "body by the byte": (then_a_byte_a_second(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n"), None),
        "head by the byte": (then_a_byte_a_second(b""), late),
    }


def test_fault_51_no_answer_takes_much_time_or_memory(service: Service, shops: Shops) -> None:
    """However much a receiver answers and however slowly, time and memory are bounded, and a 2xx counts as received."""
    kinds = hostile()

    def play(urls: Sequence[str]) -> None:
        everyone = shops(*urls)
        before, most = memory(service, "VmRSS"), memory(service, "VmHWM")
        began = time.monotonic()
        for shop in everyone:
            for _ in range(4):
                shop.start(NEVER_PAYS)
        for shop, (name, (_, why)) in zip(everyone, kinds.items(), strict=True):
            eventually(lambda shop=shop: all(tried(each) for each in shop.deliveries()))  # type: ignore[misc]
            fared = shop.deliveries()
            assert [each["error"] for each in fared] == [why] * 4, name
            if why is None:
                assert [each["state"] for each in fared] == ["delivered"] * 4, name
        assert time.monotonic() - began < TIMEOUT + 10
        assert memory(service, "VmRSS") - before < 40_000
        assert memory(service, "VmHWM") - max(before, most) < 40_000

    async def run() -> None:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(serving(behave)) for behave, _ in kinds.values()]
            await asyncio.to_thread(play, [f"http://127.0.0.1:{server.port}/hook" for server in servers])

    asyncio.run(run())


def tried(delivery: Json) -> bool:
    """Whether an attempt of a notification has come to an end."""
    return bool(delivery["error"] or delivery["delivered_at"])


def test_fault_52_every_attempt_is_the_same_notification(service: Service, shops: Shops) -> None:
    """A receiver can tell a repetition: same id, same body, and a signature with the time of each attempt."""
    with run_receiver(lambda _: OK if len(receiver.got) > len(SCHEDULE) else FAILS) as receiver:
        [shop] = shops(receiver.url)
        refid = shop.start(NEVER_PAYS)
        eventually(lambda: shop.deliveries("delivered"))
        assert len(receiver.got) == len(SCHEDULE) + 1
        [event] = [
            each
            for each in shop.http.get(f"/v1/payments/{refid}/events").json()["items"]
            if each["type"] == "payment.pending"
        ]
        assert {got.id for got in receiver.got} == {f"evt_{refid}_{event['seq']}"}
        assert len({got.body for got in receiver.got}) == 1
        for got in receiver.got:
            assert got.verify(shop.credentials.webhook_secret)["data"]["refid"] == refid
        # They lie two seconds apart.
        assert int(receiver.got[-1].headers["webhook-timestamp"]) > int(receiver.got[0].headers["webhook-timestamp"])


def test_fault_52_the_old_secret_is_good_for_one_rotation(service: Service, shops: Shops) -> None:
    """While a secret is being changed a notification verifies with the old one and the new one, and with no older."""
    with run_receiver() as receiver:
        [shop] = shops(receiver.url)
        secrets = [shop.credentials.webhook_secret]
        notified: list[Got] = []
        for _ in range(2):
            said = run_command(service.env, "clients", "rotate", shop.name, "--only", "secret", "--json").stdout
            secrets.append(json.loads(said)["webhook_secret"])
            notified.append(eventually(lambda: verified(shop, receiver, secrets[-1]), every=0.3))
            notified[-1].verify(secrets[-2])
        with pytest.raises(WebhookVerificationError):
            notified[-1].verify(secrets[0])


def verified(shop: Shop, receiver: Receiver, secret: str) -> Got | None:
    """Return the notification of a new payment if `secret` verifies it."""
    refid = shop.start(NEVER_PAYS)
    got: Got = eventually(lambda: receiver.of(refid))[0]
    try:
        got.verify(secret)
    except WebhookVerificationError:
        return None
    return got


def test_fault_52_one_payments_notifications_come_in_order(service: Service, shops: Shops) -> None:
    """What follows a notification that fails comes after it; those of other payments of the same client go on."""
    gate, slow = threading.Event(), new_refid()

    def answer(got: Got) -> tuple[int, dict[str, str]]:
        if got.json["data"]["refid"] != slow or got.json["type"] != "payment.pending":
            return OK
        gate.wait(TIMEOUT)
        return OK if len(receiver.of(slow)) > 2 else FAILS

    with run_receiver(answer) as receiver:
        [shop] = shops(receiver.url)
        shop.start(refid=slow)
        other = shop.start()
        eventually(lambda: receiver.types(other) == ["payment.pending", "payment.succeeded"])
        assert shop.http.get(f"/v1/payments/{slow}", params={"wait": 5}).json()["status"] == "succeeded"
        assert receiver.types(slow) == ["payment.pending"]
        gate.set()
        eventually(lambda: "payment.succeeded" in receiver.types(slow))
        assert receiver.types(slow) == ["payment.pending"] * 3 + ["payment.succeeded"]
        # Told late, each tells the payment as it was.
        assert [got.json["data"]["status"] for got in receiver.of(slow)] == ["pending"] * 3 + ["succeeded"]


def test_fault_52_a_parked_notification_holds_up_none(service: Service, shops: Shops) -> None:
    """A notification that its receiver never takes is parked, and the next one of the same payment follows."""
    with run_receiver(lambda got: FAILS if got.json["type"] == "payment.pending" else OK) as receiver:
        [shop] = shops(receiver.url)
        refid = shop.start()
        eventually(lambda: "payment.succeeded" in receiver.types(refid))
        assert receiver.types(refid) == ["payment.pending"] * (len(SCHEDULE) + 1) + ["payment.succeeded"]
        assert [each["type"] for each in shop.deliveries("parked")] == ["payment.pending"]
