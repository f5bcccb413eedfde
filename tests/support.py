"""Processes that tests start, and how they talk to them."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from app.clients import ClientError, Clients
from app.database import async_url, open_database
from app.dev.laptop import free_port
from app.domain import Scope
from app.macs import RETURL, Macs
from app.schema import migrate
from app.settings import environment
from tests.given import Postgres, name_of, reaching

SECRET_KEY = "k" * 40
START_SECONDS = 30

Json = dict[str, Any]


def query(url: str, sql: str, *arguments: object) -> list[Any]:
    """Run one statement on a database and return its rows."""

    async def run() -> list[Any]:
        connection = await asyncpg.connect(async_url(url).replace("+asyncpg", ""))
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    return asyncio.run(run())


def is_cluster(url: str) -> bool:
    """Whether a database is of a Citus cluster."""
    return bool(query(url, "SELECT 1 FROM pg_extension WHERE extname = 'citus'"))


def create_database(server: Postgres, name: str, *, template: str) -> None:
    """Make a database on `server`: `template0` makes an empty one.

    A Citus coordinator is connected to each of its databases, so that none can be copied: there each is migrated.
    """
    url = server.url_of(name)
    if is_cluster(server.url):
        query(server.url, f'CREATE DATABASE "{name_of(url)}"')
        query(url, "CREATE EXTENSION IF NOT EXISTS citus")
        if template != "template0":
            migrate(url)
    else:
        copied = template if template == "template0" else name_of(server.url_of(template))
        query(server.url, f'CREATE DATABASE "{name_of(url)}" TEMPLATE "{copied}"')


def eventually(seen: Callable[[], Any], *, seconds: float = 15, every: float = 0.1) -> Any:  # noqa: ANN401 - what `seen` returns
    """Return the first true value that `seen` returns; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := seen():
            return value
        time.sleep(every)
    if value := seen():
        return value
    raise AssertionError(f"not seen within {seconds:g} s; last was {seen()!r}")


def new_refid() -> str:
    """Return a refid that no other test has."""
    return f"t-{uuid.uuid4().hex[:20]}"


def payment(number: str = "250788312934", **changes: object) -> Json:
    """Return a good request for a payment, with `changes`; a change to None leaves the member out."""
    request: Json = {
        "amount": 4200,
        "pmethod": "momo",
        "msisdn": number,
        "email": "ikaneza@example.rw",
        "details": "order 1042",
        "cname": "KANEZA",
        "redirecturl": "https://shop.example.rw/done",
    }
    return {name: value for name, value in (request | changes).items() if value is not None}


@dataclass
class Process:
    """A kpayd command that runs, and where its words go."""

    child: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """Kill it the hard way."""
        self.child.kill()
        self.child.wait()

    def stop(self, seconds: float = START_SECONDS) -> int:
        """Ask it to stop, wait until it has, and return its exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(seconds)

    @property
    def words(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace")


@contextmanager
def kpayd(folder: Path, env: Mapping[str, str], *arguments: str) -> Iterator[Process]:
    """Run `kpayd ARGUMENTS` until the block ends."""
    path = folder / f"{arguments[0]}-{uuid.uuid4().hex[:6]}.log"
    with path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments], env=environment() | dict(env), cwd=folder, stdout=log, stderr=log
        )
    process = Process(child, path)
    try:
        yield process
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.terminate()
            try:
                child.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(process: Process, url: str) -> None:
    """Wait until `url` answers 200."""

    def seen() -> bool:
        assert process.child.poll() is None, process.words
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(url, trust_env=False).status_code == httpx2.codes.OK
        return False

    eventually(seen, seconds=START_SECONDS, every=0.05)


class Simulator:
    """The K-Pay simulator as a process."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.url, trust_env=False, timeout=20)

    def ledger(self, refid: str) -> Json | None:
        """Return what K-Pay knows of a payment, or None."""
        answer = self.http.get(f"/_simulator/payments/{refid}")
        return None if answer.status_code == httpx2.codes.NOT_FOUND else answer.json()

    def requests(self, refid: str) -> int:
        """Return how often K-Pay was asked for the money."""
        return int(self.http.get(f"/_simulator/payments/{refid}").json()["requests"])

    def behave(self, **how: object) -> None:
        """Change the whole gateway: down, refuse_credentials, latency, payer_delay."""
        self.http.post("/_simulator/behave", json=how).raise_for_status()

    def settle(self, refid: str, statusid: str, *, postback: bool = True) -> None:
        """Play the payer by hand."""
        play = {"statusid": statusid, "postback": postback}
        self.http.post(f"/_simulator/payments/{refid}/settle", json=play).raise_for_status()


class Service:
    """The service as a process, with one API client that may do everything."""

    def __init__(
        self, process: Process, url: str, database_url: str, env: Mapping[str, str], *, key: str | None = None
    ) -> None:
        self.process = process
        self.url = url
        self.database_url = database_url
        self.env = env
        self.key = key or self.new_key("shop")
        self.http = self.client(self.key)

    def client(self, key: str | None) -> httpx2.Client:
        """Return an HTTP client that calls with `key`."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=90)

    def new_key(self, name: str, *scopes: str) -> str:
        """Add an API client, which may do everything unless `scopes` are given, and return its key."""

        async def make() -> str:
            async with open_database(self.database_url, pool=1) as database:
                clients = Clients(database)
                try:
                    return (await clients.add(name, scopes=scopes or tuple(Scope))).key
                except ClientError:  # a service restarted over the same database
                    return (await clients.rotate(name)).key

        return asyncio.run(make())

    def start(self, number: str = "250788312934", **changes: object) -> Json:
        """Start a payment and return it; fails unless it is 201."""
        answer = self.http.post("/v1/payments", json=payment(number, **changes))
        assert answer.status_code == httpx2.codes.CREATED, answer.text
        body: Json = answer.json()
        return body

    def read(self, refid: str, *, wait: float = 0) -> Json:
        """Return a payment, waiting for its end up to `wait` seconds."""
        body: Json = self.http.get(f"/v1/payments/{refid}", params={"wait": wait}).raise_for_status().json()
        return body

    def events(self, refid: str) -> list[Json]:
        """Return a payment's timeline."""
        items: list[Json] = self.http.get(f"/v1/payments/{refid}/events").raise_for_status().json()["items"]
        return items

    def returl(self, refid: str, *, mac: str | None = None) -> str:
        """Return the path that K-Pay posts to for a payment."""
        return f"/kpay/returl/{refid}/{mac or Macs([SECRET_KEY]).make(RETURL, refid)}"

    def postback(self, refid: str, **members: object) -> httpx2.Response:
        """Send an authentic postback."""
        body = {"tid": self.read(refid)["tid"], "refid": refid, "momtransactionid": "", "statusdesc": "said"} | members
        return self.http.post(self.returl(refid), json=body)


@contextmanager
def run_simulator(folder: Path, *, payer_delay: float = 0.3) -> Iterator[Simulator]:
    """Run a simulator on a free port."""
    port = free_port()
    with kpayd(folder, {}, "simulator", "--port", str(port), "--payer-delay", str(payer_delay)) as process:
        answers(process, f"http://127.0.0.1:{port}/")
        simulator = Simulator(process, port)
        with simulator.http:
            yield simulator


def settings(database_url: str, gateway_url: str, port: int, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service."""
    own = {
        **reaching(database_url),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "GATEWAY_URL": gateway_url,
        "GATEWAY_USERNAME": "kpay",
        "GATEWAY_PASSWORD": "kpay",
        "RETAILERID": "02",
        "SECRET_KEYS": SECRET_KEY,
        "STOP_DELAY": "0",
    }
    return {f"KPAYD_{name}": value for name, value in (own | dict(more)).items()}


@contextmanager
def run_service(
    folder: Path,
    database_url: str,
    simulator: Simulator,
    more: Mapping[str, str],
    *arguments: str,
    port: int | None = None,
) -> Iterator[Service]:
    """Run a service on a free port."""
    port = port or free_port()
    env = settings(database_url, f"{simulator.url}/", port, more)
    with kpayd(folder, env, "serve", "--port", str(port), *arguments) as process:
        answers(process, f"http://127.0.0.1:{port}/healthz")
        service = Service(process, f"http://127.0.0.1:{port}", database_url, env)
        with service.http:
            yield service


def run_command(env: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a kpayd command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        check=False,
        env=environment() | dict(env) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=os.environ.get("TMPDIR", "/tmp"),  # noqa: S108 - so that no `.env` is read
    )


@dataclass(frozen=True)
class Said:
    """One answer as it came over a bare socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        """Return the body as a JSON object."""
        body: Json = json.loads(self.body)
        return body


def spoken(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return a request byte for byte; `content_type` is `Content-Type`, and the connection ends after the answer."""
    lines = {"host": "kpayd", "connection": "close", "content_length": str(len(body))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def at_once(url: str, requests: Sequence[bytes], *, seconds: float = 10) -> list[Said]:
    """Send all requests, each on a connection of its own, so that their last bytes leave in one go."""
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_connection((host, int(port)), seconds)) for _ in requests]
        for each, request in zip(sockets, requests, strict=True):
            each.sendall(request[:-1])
        for each, request in zip(sockets, requests, strict=True):
            each.sendall(request[-1:])
        return [_heard(each) for each in sockets]


def _heard(each: socket.socket) -> Said:
    answer = HTTPResponse(each)
    answer.begin()
    return Said(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def bodies(service: Service, refid: str) -> list[bytes]:
    """Return the raw postbacks that are stored for a payment, oldest first."""
    sql = "SELECT body FROM bodies WHERE refid = $1 AND source = 'postback' ORDER BY created_at"
    return [row["body"] for row in query(service.database_url, sql, refid)]


def metric(service: Service, name: str) -> float:
    """Return the value of one metric, labels and all, or 0 where it has none yet."""
    lines = httpx2.get(f"{service.url}/metrics", trust_env=False).text.splitlines()
    return next((float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} ")), 0.0)


def hush(service: Service) -> None:
    """Let no open payment be checked by itself any more: hundreds that never end would keep later tests waiting."""
    hushing = "UPDATE payments SET next_check_at = NULL WHERE status IN ('created', 'pending')"
    # An answer that is on its way sets the time of the next check.
    under_way = "SELECT FROM payments WHERE status IN ('created', 'pending') AND leased_until > now()"
    eventually(lambda: [query(service.database_url, sql) for sql in (hushing, under_way)] == [[], []], seconds=60)
