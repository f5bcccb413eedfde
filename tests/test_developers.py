"""Every example of docs/developers.md does what the page says: run as it stands there, on a real service."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from standardwebhooks import Webhook

from app.clients import Clients, Credentials, new_webhook_secret
from app.database import open_database
from app.dev.demo import Stage
from app.dev.laptop import free_port
from tests.conftest import QUICK
from tests.desk import BLOCKS, PAGE, Desk, at_desk
from tests.proxy import Fault, running_proxy
from tests.receiver import run_receiver
from tests.support import Service, Simulator, eventually, new_refid, payment, run_service

LANGUAGES = ("py", "mjs", "php")
PROGRAMS = ("pay", "receive", "feed", "stream")
CARDS = ("card", "save-card", "cards", "saved-card")
SHELL = ("start", "wait", "again", *CARDS, "listen", "client", "parked", "feed", "stream")
SETTINGS = QUICK | {"WEBHOOK_HOSTS": "127.0.0.1", "WEBHOOK_SCHEDULE": "0.2,0.3", "WEBHOOK_TIMEOUT": "2"}


@pytest.fixture(scope="module")
def shop(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that may notify this machine."""
    with run_service(tmp_path_factory.mktemp("shop"), new_database(), simulator, SETTINGS) as service:
        yield service


def of_clients(service: Service, work: Callable[[Clients], Awaitable[Credentials]]) -> Credentials:
    """Do something to the service's API clients."""

    async def run() -> Credentials:
        async with open_database(service.database_url, pool=1) as database:
            return await work(Clients(database))

    return asyncio.run(run())


def new_client(service: Service, url: str | None = None) -> Credentials:
    """Make an API client."""
    return of_clients(service, lambda clients: clients.add(new_refid(), webhook_url=url))


@pytest.fixture
def desk(tmp_path: Path, shop: Service) -> Desk:
    """Return a desk with the key of the service's first client."""
    return at_desk(tmp_path, shop, shop.key)


def feed(service: Service, key: str) -> list[str]:
    """Return a client's feed as the examples print it."""
    with service.client(key) as http:
        items = http.get("/v1/events", params={"limit": 1000}).raise_for_status().json()["items"]
    return [f"{event['type']} {event['refid']} {event['data']['status']}" for event in items]


def paid(service: Service, key: str) -> str:
    """Start a payment, see it paid and in the feed, and return its refid."""
    with service.client(key) as http:
        started = http.post("/v1/payments", params={"wait": 20}, json=payment(refid=new_refid())).raise_for_status()
    refid: str = started.json()["refid"]
    assert started.json()["status"] == "succeeded"
    eventually(lambda: f"payment.succeeded {refid} succeeded" in feed(service, key))
    return refid


def test_every_example_is_run() -> None:
    """Every block in a language has a name, and is run by a test below."""
    opened = re.findall(r"^```(\S.*)$", PAGE.read_text(), re.MULTILINE)
    assert [each for each in opened if len(each.split()) != 2] == []
    wanted = {f"{program}.{kind}" for program in PROGRAMS for kind in LANGUAGES} | {f"{name}.sh" for name in SHELL}
    assert set(BLOCKS) == wanted
    assert len(opened) == len(BLOCKS)


def test_a_payment_by_curl(desk: Desk, simulator: Simulator) -> None:
    """Started, waited for until it is paid; the same request again is the same payment."""
    started = json.loads(desk.run("start.sh"))
    assert (started["refid"], started["status"]) == (f"order-{desk.env['ORDER']}-1", "pending")
    ended = json.loads(desk.run("wait.sh"))
    assert (ended["status"], ended["momtransactionid"] is not None) == ("succeeded", True)
    assert json.loads(desk.run("start.sh"))["status"] == "succeeded"
    assert simulator.requests(started["refid"]) == 1


def test_a_card_by_curl(desk: Desk, shop: Service, simulator: Simulator) -> None:
    """The payer pays at the checkout page and comes back to the shop; a saved card is listed and charged at once."""
    browser = Stage(shop.url, simulator.url, shop.key)
    started = json.loads(desk.run("card.sh"))
    back = browser.card_typed(started["checkout_url"])
    order = desk.env["ORDER"]
    assert back == f"https://shop.example.rw/done?order={order}&refid=card-{order}-1&status=succeeded"
    browser.card_typed(json.loads(desk.run("save-card.sh"))["url"])
    (card,) = json.loads(desk.run("cards.sh"))["items"]
    assert (card["cardhash"], card["scheme"]) == ("555555xxxxxx4444", "MASTERCARD")
    charged = json.loads(desk.run("saved-card.sh", TOKEN=card["token"]))
    assert (charged["refid"], charged["status"]) == (f"card-{order}-2", "succeeded")


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_payment_by_a_program(kind: str, desk: Desk, shop: Service) -> None:
    """It ends with the outcome; run again it finds the same payment; a refused one tells why."""
    said = desk.run(f"pay.{kind}").split()
    assert said[0] == "succeeded"
    assert desk.run(f"pay.{kind}").split() == said
    assert shop.read(said[1])["orderid"] == desk.env["ORDER"]
    failed = desk.run(f"pay.{kind}", ORDER=new_refid(), MSISDN="250780000002").split()
    assert (failed[0], failed[2]) == ("failed", "insufficient_funds")


@pytest.mark.parametrize("kind", LANGUAGES)
def test_an_order_that_was_paid_otherwise_is_not_paid_again(kind: str, desk: Desk, shop: Service) -> None:
    """A program that comes second follows the payment that its order has."""
    other = shop.start(refid=new_refid(), orderid=desk.env["ORDER"])["refid"]
    assert desk.run(f"pay.{kind}").split() == ["succeeded", other]


@pytest.mark.parametrize("kind", LANGUAGES)
def test_what_is_refused_is_told_and_not_repeated(kind: str, desk: Desk) -> None:
    """A request at fault ends the program with the service's words."""
    command, env = desk.command(f"pay.{kind}"), {**desk.env, "MSISDN": "12"}
    done = subprocess.run(command, check=False, env=env, cwd=desk.folder, capture_output=True, timeout=20)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("422 invalid_request: msisdn: must be")


@pytest.mark.parametrize("name", ["again.sh", *(f"pay.{kind}" for kind in LANGUAGES)])
def test_an_answer_that_is_lost_costs_nothing(name: str, tmp_path: Path, shop: Service, simulator: Simulator) -> None:
    """The payment is made and its answer lost: the same request again brings that payment, and K-Pay is asked once."""
    key, port = new_client(shop).key, int(shop.url.rpartition(":")[2])
    with running_proxy(("127.0.0.1", port)) as proxy, shop.client(key) as http:
        desk = at_desk(tmp_path, shop, key, KPAYD_URL=proxy.url)
        lost = threading.Event()
        proxy.watch = lambda direction, _: lost.set() if direction == "answer" else None
        proxy.set(Fault.LOSE_ANSWER)
        with desk.running(name) as printed:
            assert lost.wait(20)
            proxy.set(Fault.NONE)
            refid = http.get("/v1/payments").json()["items"][0]["refid"]
            eventually(lambda: refid in "".join(printed()))
        assert [each["refid"] for each in http.get("/v1/payments").json()["items"]] == [refid]
        assert proxy.connections > 1
    assert simulator.requests(refid) == 1


@dataclass(frozen=True)
class Hook:
    """A receiver of the page that is running."""

    url: str
    secret: str
    printed: Callable[[], list[str]]

    def send(self, id_: str, body: bytes, *, secret: str = "", at: datetime | None = None, **headers: str) -> int:
        """Send it a notification and return what it answered."""
        at = at or datetime.now(UTC)
        signature = Webhook(secret or self.secret).sign(id_, at, body.decode())
        own = {"webhook-id": id_, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in (own | named).items() if value}
        return httpx2.post(self.url, content=body, headers=sent, trust_env=False, timeout=10).status_code


@contextmanager
def receiving(folder: Path, service: Service, kind: str, secret: str, port: int) -> Iterator[Hook]:
    """Run a receiver of the page."""
    desk = at_desk(folder, service, "", WEBHOOK_SECRET=secret, PORT=str(port))
    with desk.running(f"receive.{kind}") as printed:

        def takes_connections() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(takes_connections)
        told = re.compile(r"payment\.\w+ \S+ \d+ \w+$")  # PHP's server tells of connections too
        yield Hook(f"http://127.0.0.1:{port}/", secret, lambda: [line for line in printed() if told.match(line)])


@pytest.fixture(params=LANGUAGES)
def hook(request: pytest.FixtureRequest, tmp_path: Path, shop: Service) -> Iterator[Hook]:
    """Run the page's receiver in each language, by itself."""
    with receiving(tmp_path, shop, request.param, new_webhook_secret(), free_port()) as hook:
        yield hook


def told(number: int, **data: object) -> tuple[str, bytes]:
    """Return id and body of a notification of order-1."""
    body = {"type": "payment.succeeded", "timestamp": "2026-01-31T08:00:21Z", "data": {"status": "succeeded"} | data}
    return f"evt_order-1_{number}", json.dumps(body, ensure_ascii=False).encode()


def test_a_receiver_refuses_what_is_not_genuine(hook: Hook) -> None:
    """Forged, altered, old, early, signed with another secret or not at all: 400, and nothing is believed."""
    id_, body = told(4)
    now = datetime.now(UTC)
    good = Webhook(hook.secret).sign(id_, now, body.decode())
    refused = {
        "another secret": hook.send(id_, body, secret=new_webhook_secret()),
        "altered": hook.send(id_, body + b" ", webhook_signature=good),
        "another id": hook.send("evt_order-1_5", body, webhook_signature=good),
        "old": hook.send(id_, body, at=now - timedelta(seconds=330)),
        "early": hook.send(id_, body, at=now + timedelta(seconds=330)),
        "another time": hook.send(id_, body, webhook_timestamp=str(int(now.timestamp()) - 60)),
        "not a time": hook.send(id_, body, webhook_timestamp="1e9"),
        "no time": hook.send(id_, body, webhook_timestamp=""),
        "no signature": hook.send(id_, body, webhook_signature=""),
        "cut": hook.send(id_, body, webhook_signature=good[:-4]),
        "another version": hook.send(id_, body, webhook_signature=good.replace("v1,", "v2,")),
        "nothing": httpx2.post(hook.url, content=body, trust_env=False, timeout=10).status_code,
    }
    assert refused == dict.fromkeys(refused, 400)
    assert hook.printed() == []


def test_a_receiver_takes_what_is_genuine_once_and_in_order(hook: Hook) -> None:
    """One of several signatures is enough; a repetition and what is older are answered 2xx and change nothing."""
    now = datetime.now(UTC)
    other = Webhook(new_webhook_secret())
    for number, when in ((2, now), (4, now - timedelta(seconds=240)), (11, now + timedelta(seconds=240))):
        id_, body = told(number, cname="Umutoni Ange, Gasabo, Café")
        first = other.sign(id_, when, body.decode())
        good = Webhook(hook.secret).sign(id_, when, body.decode())
        assert hook.send(id_, body, at=when, webhook_signature=f"{first} {good}") == 204
        assert hook.send(id_, body, at=when, webhook_signature=f"{good} {first}") == 204
    assert hook.send(*told(9)) == 204
    assert hook.printed() == [f"payment.succeeded order-1 {number} succeeded" for number in (2, 4, 11)]


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_receiver_takes_real_notifications(kind: str, tmp_path: Path, shop: Service) -> None:
    """What the service sends is taken and received; also when the service signs with a new secret and the old one."""
    port = free_port()
    client = new_client(shop, f"http://127.0.0.1:{port}/")
    with receiving(tmp_path, shop, kind, client.webhook_secret, port) as hook, shop.client(client.key) as http:
        wanted: list[str] = []
        for _ in range(2):
            refid = paid(shop, client.key)
            wanted += [f"payment.pending {refid} pending", f"payment.succeeded {refid} succeeded"]
            _until(lambda: [re.sub(r" \d+ ", " ", line) for line in hook.printed()], wanted)
            of_clients(shop, lambda clients: clients.rotate(client.name, key=False))
            time.sleep(1.2)  # the couriers look for new secrets every second

        def states() -> set[str]:
            return {each["state"] for each in http.get("/v1/deliveries").json()["items"]}

        eventually(lambda: states() == {"delivered"})


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_program_reads_the_feed(kind: str, tmp_path: Path, shop: Service) -> None:
    """All there is, once; the next time only what is new."""
    key = new_client(shop).key
    desk = at_desk(tmp_path, shop, key)
    paid(shop, key)
    first = feed(shop, key)
    assert desk.run(f"feed.{kind}").splitlines() == first
    assert desk.run(f"feed.{kind}") == ""
    paid(shop, key)
    assert desk.run(f"feed.{kind}").splitlines() == feed(shop, key)[len(first) :]


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_program_follows_the_stream(kind: str, tmp_path: Path, shop: Service) -> None:
    """Every event as it comes and once, though the connection breaks and the program is started anew."""
    key = new_client(shop).key
    with running_proxy(("127.0.0.1", int(shop.url.rpartition(":")[2]))) as proxy:
        desk = at_desk(tmp_path, shop, key, KPAYD_URL=proxy.url)
        for _ in range(2):
            with desk.running(f"stream.{kind}"):
                for _ in range(2):
                    paid(shop, key)
                    _until(lambda: _events(tmp_path / f"stream.{kind}.out"), feed(shop, key))
                    proxy.cut()
        assert proxy.connections >= 4


def _events(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("payment.")]


def _until(seen: Callable[[], object], wanted: object) -> None:
    """Wait until what is seen is what is wanted."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: seen() == wanted)
    assert seen() == wanted


def test_feed_and_stream_by_curl(tmp_path: Path, shop: Service) -> None:
    """Both show the events of a payment; the stream goes on until curl has had enough."""
    key = new_client(shop).key
    desk = at_desk(tmp_path, shop, key)
    refid = paid(shop, key)
    page = json.loads(desk.run("feed.sh"))
    last = page["items"][-1]
    assert (last["type"], last["refid"], last["id"]) == ("payment.succeeded", refid, page["next_cursor"])
    with desk.running("stream.sh") as printed:
        eventually(lambda: f"id: {last['id']}" in printed())
    assert printed()[0].startswith("retry: ")


def test_what_was_parked_is_sent_again_by_curl(tmp_path: Path, shop: Service) -> None:
    """A receiver that was broken for long gets everything in the end, on its own word."""
    with run_receiver(lambda _: (500, {})) as receiver:
        client = new_client(shop, receiver.url)
        refid = paid(shop, client.key)
        desk = at_desk(tmp_path, shop, client.key)

        with shop.client(client.key) as http:
            eventually(lambda: len(http.get("/v1/deliveries?state=parked").json()["items"]) == 2)
        receiver.answer = lambda _: (200, {})
        page, retried = desk.run("parked.sh").replace("}{", "}\n{").splitlines()
        assert [each["type"] for each in json.loads(page)["items"]] == ["payment.succeeded", "payment.pending"]
        assert json.loads(retried) == {"retried": 2}
        eventually(lambda: receiver.types(refid)[-2:] == ["payment.pending", "payment.succeeded"])


def _dev(folder: Path) -> None:
    """Put a `./dev` there that runs this tree's kpayd, and makes no environment."""
    root = Path(__file__).parent.parent
    path = folder / "dev"
    path.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={root} exec {sys.executable} -m app "$@"\n')
    path.chmod(0o755)


def test_events_are_forwarded_to_a_laptop(tmp_path: Path, shop: Service) -> None:
    """`kpayd listen` prints a secret, and the page's receiver takes what it forwards."""
    port = free_port()
    client = new_client(shop)
    _dev(tmp_path)
    desk = at_desk(tmp_path, shop, client.key, PORT=str(port))
    with desk.running("listen.sh") as said:
        secret = eventually(lambda: re.findall(r"whsec_\S+", "\n".join(said())))[0]
        with receiving(tmp_path, shop, "py", secret, port) as hook:
            refid = paid(shop, client.key)
            eventually(lambda: re.search(rf"payment\.succeeded {refid} \d+ succeeded", "\n".join(hook.printed())))


def test_a_client_that_is_notified(tmp_path: Path, shop: Service) -> None:
    """The command of the page shows key and secret of a client, and its receiver takes what the service sends."""
    port = free_port()
    _dev(tmp_path)
    database = {"KPAYD_DATABASE_URL": shop.database_url, "KPAYD_WEBHOOK_HOSTS": "127.0.0.1"}
    desk = at_desk(tmp_path, shop, "", PORT=str(port), COLUMNS="200")
    shown = dict(re.findall(r"^(key|webhook secret) +(\S+) *$", desk.run("client.sh", **database), re.MULTILINE))
    with receiving(tmp_path, shop, "py", shown["webhook secret"], port) as hook:
        refid = paid(shop, shown["key"])
        eventually(lambda: re.search(rf"payment\.succeeded {refid} \d+ succeeded", "\n".join(hook.printed())))
