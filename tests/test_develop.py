"""`kpayd listen` and `kpayd trigger`: what whoever writes a client has on the laptop."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from standardwebhooks import WebhookVerificationError

from app.dev.laptop import free_port
from app.settings import environment
from tests.conftest import QUICK
from tests.proxy import Fault, running_proxy
from tests.receiver import OK, Got, run_receiver
from tests.support import Json, Process, Service, Simulator, eventually, kpayd, payment, query, run_command, run_service

SECRET = "whsec_" + "a2" * 22
NEVER_ACTS = "250780000005"
PAYS_AT_ONCE = "250780000007"


@pytest.fixture(scope="module")
def own(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service whose notifications may go to this machine and whose payments expire after seconds."""
    settings = QUICK | {"WEBHOOK_HOSTS": "127.0.0.1", "EXPIRE_AFTER": "4"}
    with run_service(tmp_path_factory.mktemp("own"), new_database(), simulator, settings) as service:
        yield service


def port_of(url: str) -> int:
    """Return the port in a URL."""
    return urlsplit(url).port or 0


def start(service: Service, key: str, number: str = "250788312934", **changes: object) -> Json:
    """Start a payment as the client with that key."""
    with service.client(key) as http:
        body: Json = http.post("/v1/payments", json=payment(number, **changes)).raise_for_status().json()
    return body


def feed(service: Service, key: str) -> list[Json]:
    """Return a client's feed."""
    with service.client(key) as http:
        items: list[Json] = http.get("/v1/events?limit=1000").raise_for_status().json()["items"]
    return items


def payments(service: Service, key: str) -> int:
    """Return how many payments a client has."""
    with service.client(key) as http:
        return len(http.get("/v1/payments").raise_for_status().json()["items"])


def play(service: Service, key: str, number: str) -> str:
    """Start a payment, wait until its end is in the feed, and return its refid."""
    refid = str(start(service, key, number)["refid"])
    eventually(lambda: any(event["refid"] == refid and event["data"]["final_at"] for event in feed(service, key)))
    return refid


@contextmanager
def listening(folder: Path, url: str, key: str, *options: str) -> Iterator[Process]:
    """Run `kpayd listen` until the block ends; it has never shown the key, and ends at once and well by Ctrl-C."""
    with kpayd(folder, {"KPAYD_KEY": key}, "listen", "--url", url, *options) as process:
        eventually(lambda: "Ctrl-C ends it" in process.words or process.child.poll() is not None)
        assert process.child.poll() is None, process.words
        yield process
        interrupt(process)
        assert key not in process.words


def interrupt(process: Process) -> None:
    """Press Ctrl-C: the exit code is 0, and nothing is said of how it came about."""
    if process.child.poll() is None:
        process.child.send_signal(signal.SIGINT)
    assert process.child.wait(5) == 0, process.words
    assert "Traceback" not in process.words


def shown(process: Process) -> list[tuple[str, str]]:
    """Return type and refid of every event that was printed."""
    return re.findall(r"^\d\d-\d\d \d\d:\d\d:\d\d  (payment\.\w+) +(\S+)", process.words, re.MULTILINE)


def shows(process: Process, count: int) -> None:
    """Wait until so many events were printed."""
    eventually(lambda: len(shown(process)) == count)


def test_an_event_is_forwarded_as_the_notification_that_it_is(own: Service, tmp_path: Path) -> None:
    """The very body and id that the service sends, in order, signed with the secret that is shown; only what is new."""
    with run_receiver() as theirs, run_receiver() as laptop:
        key = own.new_key("forwarded")
        notify = "UPDATE clients SET webhook_url = $2, webhook_since = now() WHERE name = $1"
        query(own.database_url, notify, "forwarded", theirs.url)
        play(own, key, PAYS_AT_ONCE)
        with listening(tmp_path, own.url, key, "--forward-to", laptop.url) as process:
            secret = re.findall(r"^use it to verify on this laptop: (whsec_\S+)$", process.words, re.MULTILINE)[0]
            # A line separator's kin, and what JSON could write in two ways.
            refid = start(own, key, details="Café \u00a0 \U0001f600 </b>", metadata={"a\u2028": "\x85\u2028\n\x7f"})[
                "refid"
            ]
            eventually(lambda: "payment.succeeded" in laptop.types(refid))
            eventually(lambda: "payment.succeeded" in theirs.types(refid))
            shows(process, 2)
        assert laptop.types(refid) == ["payment.pending", "payment.succeeded"]
        assert [(got.id, got.body) for got in laptop.got] == [(got.id, got.body) for got in theirs.of(refid)]
        assert laptop.got[0].headers.keys() == theirs.of(refid)[0].headers.keys()
        assert shown(process) == [("payment.pending", refid), ("payment.succeeded", refid)]
        assert len(re.findall(r"HTTP 200  \d+ ms$", process.words, re.MULTILINE)) == 2
        for got in laptop.got:
            assert got.verify(secret)["data"]["refid"] == refid
            with pytest.raises(WebhookVerificationError):
                got.verify(SECRET)


def test_a_receiver_that_is_down_does_not_end_it(own: Service, tmp_path: Path) -> None:
    """Nobody there, an error, a redirect and an answer that never comes are told in a line each; then it goes on."""
    key = own.new_key("downs")
    release = threading.Event()

    def answer(got: Got) -> tuple[int, dict[str, str]]:
        step = got.json["data"]["details"]
        if step == "slow":
            release.wait(20)
        return {"error": (500, {}), "moved": (302, {"location": "/elsewhere"})}.get(step, OK)

    with run_receiver(answer) as laptop, running_proxy(("127.0.0.1", port_of(laptop.url))) as door:
        options = ("--forward-to", f"{door.url}/hook", "--secret", SECRET, "--events", "payment.succeeded")
        with listening(tmp_path, own.url, key, *options) as process:
            door.set(Fault.REFUSE)
            for count, step in enumerate(("down", "error", "moved", "back"), start=1):
                start(own, key, PAYS_AT_ONCE, details=step)
                shows(process, count)
                door.set(Fault.NONE)
            lines = [line for line in process.words.splitlines() if "payment.succeeded" in line]
            words = ("not received: nobody takes the connection", "HTTP 500", "HTTP 302", "HTTP 200")
            assert all(word in line for word, line in zip(words, lines, strict=True)), lines
            assert process.words.count("is not sent again here") == 1
            assert SECRET not in process.words
            assert [got.verify(SECRET)["data"]["details"] for got in laptop.got] == ["error", "moved", "back"]
            start(own, key, PAYS_AT_ONCE, details="slow")
            eventually(lambda: len(laptop.got) == 4)  # and now Ctrl-C while the receiver says nothing
        release.set()


def test_without_a_receiver_it_shows_what_happens(own: Service, tmp_path: Path) -> None:
    """`--from-start` shows the whole feed in its order, `--events` less of it, `--json` each event on a line."""
    key = own.new_key("watched")
    for number in ("250788312934", "250780000002"):
        play(own, key, number)
    whole = feed(own, key)
    with listening(tmp_path, own.url, key, "--from-start") as process:
        shows(process, len(whole))
    assert shown(process) == [(event["type"], event["refid"]) for event in whole]
    assert "4,200 RWF  insufficient_funds: LOW_BALANCE" in process.words
    options = ("--from-start", "--json", "--events", "payment.failed, payment.created")
    with listening(tmp_path, own.url, key, *options) as process:
        eventually(lambda: process.words.count("\n{") == 3)
    lines = [json.loads(line) for line in process.words.splitlines() if line.startswith("{")]
    assert lines == [event for event in whole if event["type"] in ("payment.failed", "payment.created")]


def test_nothing_is_lost_when_the_service_restarts_or_the_line_breaks(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """It comes back with `Last-Event-ID`: every event once, in the feed's order, and each break is said once."""
    database, port = new_database(), free_port()
    with run_receiver() as laptop, running_proxy(("127.0.0.1", port)) as line, contextlib.ExitStack() as stack:
        with run_service(tmp_path, database, simulator, QUICK, port=port) as service:
            key = service.new_key("shop")
            options = ("--forward-to", laptop.url, "--events", "payment.succeeded")
            process = stack.enter_context(listening(tmp_path, line.url, key, *options))
            start(service, key, PAYS_AT_ONCE)
            eventually(lambda: len(laptop.got) == 1)
            line.set(Fault.TRUNCATE, 150)  # in the middle of an event
            start(service, key, PAYS_AT_ONCE)
            eventually(lambda: process.words.count("trying again") == 1)
            line.set(Fault.NONE)
            eventually(lambda: len(laptop.got) == 2)
        eventually(lambda: process.words.count("trying again") == 2)
        with run_service(tmp_path, database, simulator, QUICK, port=port) as service:
            for _ in range(3):
                start(service, key, PAYS_AT_ONCE)
            eventually(lambda: len(laptop.got) == 5)
            wanted = [event["id"] for event in feed(service, key) if event["type"] == "payment.succeeded"]
            assert [got.id for got in laptop.got] == wanted
            assert process.words.count("trying again until it is back") == 2  # however often it tried
            assert process.words.count("connected again; nothing was missed") == 2
            interrupt(process)


def test_ctrl_c_ends_it_while_the_service_is_away(own: Service, tmp_path: Path) -> None:
    """While it tries again, too."""
    door = ("127.0.0.1", port_of(own.url))
    with running_proxy(door) as line, listening(tmp_path, line.url, own.key) as process:
        line.set(Fault.REFUSE)
        eventually(lambda: "trying again" in process.words)


def test_the_key_of_kpayd_dev_is_found(own: Service, tmp_path: Path) -> None:
    """Without `--key` and KPAYD_KEY it is the laptop's own; a service that is not on this machine does not get it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "laptop.json").write_text(json.dumps({"key": own.key, "secret_key": "s"}))
    with kpayd(tmp_path, {}, "listen", "--url", own.url, "--data-dir", "data") as process:
        eventually(lambda: "Ctrl-C ends it" in process.words)
        assert process.stop(5) == 0  # SIGTERM does the same
        assert own.key not in process.words
    done = run_command({}, "listen", "--url", "https://pay.example.rw", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, "give a key of the service by --key or KPAYD_KEY" in done.stderr) == (2, True)


def test_what_is_wrong_is_one_line(own: Service, tmp_path: Path) -> None:
    """Each mistake ends it at once, with one line that says what to do, and without the key."""
    writer = own.new_key("writer", "payments:write", "payments:read")
    nobody = f"http://127.0.0.1:{free_port()}"
    (tmp_path / "laptop.json").write_text("{")
    cases = [
        (1, ["--url", own.url, "--key", "kpk_wrong", "--from-start"], "does not know the key from --key or KPAYD_KEY"),
        (1, ["--url", own.url, "--key", writer], "lacks the scope events:read"),
        (1, ["--url", nobody, "--key", own.key], f"{nobody} cannot be reached"),
        (1, ["--url", own.env["KPAYD_GATEWAY_URL"], "--key", own.key], "is not kpayd's address"),
        (2, ["--url", "http://127.0.0.1:99999", "--key", own.key], "--url must be a service's address"),
        (2, ["--forward-to", "http://a b/", "--key", own.key], "--forward-to must be"),
        (2, ["--events", "payment.paid", "--key", own.key], "--events can be payment.created, payment.expired, "),
        (
            2,
            ["--forward-to", "127.0.0.1:1", "--secret", "hush", "--key", own.key],
            "--secret must be whsec_ and base64",
        ),
        (2, ["--data-dir", str(tmp_path / "none")], "there is no "),
        (2, ["--data-dir", str(tmp_path)], "laptop.json cannot be read"),
    ]
    children = [begin({}, tmp_path, "listen", *arguments) for _, arguments, _ in cases]
    for (code, arguments, words), child in zip(cases, children, strict=True):
        said = child.communicate(timeout=60)[0]
        assert (child.returncode, len(said.splitlines())) == (code, 1), (arguments, said)
        assert said.startswith("kpayd: "), said
        assert words in said
        assert "hush" not in said
        assert own.key not in said


def begin(env: Mapping[str, str], folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Begin a kpayd command and return it; it says everything on standard output."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", *arguments],
        env=environment() | dict(env),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ("payment.pending", "pending"),
        ("payment.succeeded", "succeeded"),
        ("payment.failed", "failed"),
        ("payment.needs_review", "succeeded"),
        ("payment.expired", "expired"),
    ],
)
def test_each_event_can_be_triggered(own: Service, simulator: Simulator, event: str, status: str) -> None:
    """It starts one payment, waits for the event and prints the timeline that has it."""
    env, where = {"KPAYD_KEY": own.key}, ("--url", own.url, "--simulator-url", simulator.url)
    done = run_command(env, "trigger", event, "--json", "--amount", "700", *where)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["event"], told["seen"]) == (event, True)
    assert event in [entry["type"] for entry in told["events"]]
    assert f"started {told['refid']}: the payer " in done.stderr
    paid = own.read(told["refid"], wait=0 if event == "payment.pending" else 5)
    assert (paid["status"], paid["amount"]) == (status, 700)


def test_an_event_that_comes_later_is_said_to(own: Service, simulator: Simulator) -> None:
    """Without time to wait, expiry is started and announced; any other event that is not seen is a failure."""
    env, where = {"KPAYD_KEY": own.key}, ("--url", own.url, "--simulator-url", simulator.url, "--wait", "0")
    done = run_command(env, "trigger", "payment.expired", *where)
    assert done.returncode == 0, done.stderr
    assert "its payment.expired comes by itself when KPAYD_EXPIRE_AFTER of the service is over" in done.stderr
    told = [line.split()[3] for line in done.stdout.splitlines()[1:]]
    assert [kind for kind in told if kind != "evidence"] == ["payment.created", "payment.pending"]
    simulator.behave(payer_delay=30)
    try:
        done = run_command(env, "trigger", "payment.succeeded", *where)
    finally:
        simulator.behave(payer_delay=0.3)
    assert done.returncode == 1
    assert "payment.succeeded did not come within 0 s" in done.stderr


def test_an_unknown_event_lists_the_known_ones() -> None:
    """The same where none is named."""
    for arguments in (["payment.paid"], []):
        done = run_command({}, "trigger", *arguments)
        assert done.returncode == 2
        assert (
            "payment.pending, payment.succeeded, payment.failed, payment.needs_review, payment.expired" in done.stderr
        )


def test_nothing_is_triggered_where_money_could_move(
    own: Service, simulator: Simulator, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """A K-Pay that is not on this machine or is no simulator, and a service elsewhere: nothing is started."""
    key = own.new_key("careful")
    blind = own.new_key("blind", "payments:write", "events:read")
    real = {"GATEWAY_URL": "https://pay.example.rw/"}
    with (
        run_receiver() as other,
        run_service(tmp_path, new_database(), simulator, QUICK | real) as production,
    ):
        served, at = other.url.removesuffix("/hook"), ("--simulator-url", simulator.url)
        refused = [
            (production.key, ("--url", production.url, *at), "is pay.example.rw, and no simulator here"),
            (key, ("--url", own.url, "--simulator-url", served), f"there is no K-Pay simulator at {served}"),
            (key, ("--url", own.url, "--simulator-url", "https://sim.example.rw"), "there is no K-Pay simulator at"),
            (key, ("--url", "https://pay.example.rw", *at), "https://pay.example.rw is not on this machine"),
            (blind, ("--url", own.url, *at), "lacks the scope payments:read"),
        ]
        children = [
            begin({"KPAYD_KEY": used}, tmp_path, "trigger", "payment.succeeded", *options)
            for used, options, _ in refused
        ]
        for (used, _, words), child in zip(refused, children, strict=True):
            said = child.communicate(timeout=60)[0]
            assert (child.returncode, len(said.splitlines())) == (1, 1), said
            assert words in said
            assert used not in said
        assert not other.got
        assert payments(own, key) == payments(production, production.key) == 0
