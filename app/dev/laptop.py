"""A whole kpayd on one machine: PostgreSQL, the simulator and the service, as real processes, stopped together."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from app.clients import ClientError, Clients, new_key
from app.database import open_database
from app.dev.postgres import running
from app.schema import migrate
from app.settings import PREFIX, environment

START_SECONDS = 30.0
CLIENT = "laptop"


class LaptopError(Exception):
    """Something could not be started; the message says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Laptop:
    """Where everything is, and the key of a ready-made API client."""

    url: str
    simulator_url: str
    database_url: str
    key: str


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    data: Path, *, port: int, simulator_port: int, payer_delay: float = 1.0, settings: Mapping[str, str] | None = None
) -> Iterator[Laptop]:
    """Yield a running laptop whose data is in `data`; stops all of it afterwards. Raises `LaptopError`.

    A `KPAYD_DATABASE_URL` in the environment is used instead of an embedded server. `settings` are added to the
    service's own, with their `KPAYD_` prefix.
    """
    data.mkdir(parents=True, exist_ok=True)
    kept = _kept(data / "laptop.json")
    with ExitStack() as stack:
        for wanted in (port, simulator_port):
            _must_be_free(wanted)
        given = os.environ.get(f"{PREFIX}DATABASE_URL")
        database_url = given or stack.enter_context(running(data / "postgres")).url
        migrate(database_url)
        asyncio.run(_ensure_client(database_url, kept["key"]))
        laptop = Laptop(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{simulator_port}", database_url, kept["key"])
        own = {
            "DATABASE_URL": database_url,
            "PUBLIC_URL": laptop.url,
            "GATEWAY_URL": f"{laptop.simulator_url}/",
            "GATEWAY_USERNAME": "kpay",
            "GATEWAY_PASSWORD": "kpay",
            "RETAILERID": "02",
            "SECRET_KEYS": kept["secret_key"],
            "LOG_FORMAT": "console",
            "STOP_DELAY": "0",
            "WEBHOOK_HOSTS": "localhost,127.0.0.0/8,::1",
        }
        env = environment() | {f"{PREFIX}{name}": value for name, value in own.items()} | dict(settings or {})
        simulator = ["simulator", "--port", str(simulator_port), "--payer-delay", str(payer_delay)]
        serve = ["serve", "--port", str(port)]
        ready_urls = (laptop.simulator_url, f"{laptop.url}/readyz")
        processes = [stack.enter_context(_process(arguments, env, data)) for arguments in (simulator, serve)]
        for process, ready_url in zip(processes, ready_urls, strict=True):
            process.wait_until_answered(ready_url)
        yield laptop


def _kept(path: Path) -> dict[str, str]:
    """Return this laptop's key and secret, made at the first start: its URLs and its client stay valid."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(json.dumps({"key": new_key(), "secret_key": secrets.token_urlsafe(32)}))
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


async def _ensure_client(database_url: str, key: str) -> None:
    async with open_database(database_url, pool=1) as database:
        clients = Clients(database)
        if await clients.by_key(key) is not None:
            return
        try:
            await clients.add(CLIENT, key=key)
        except ClientError as exc:
            raise LaptopError(
                f"the database has a client {CLIENT!r} with another key; remove the data directory"
            ) from exc


def _must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise LaptopError(f"port {port} is taken; choose others by --port and --simulator-port") from exc


@dataclass(frozen=True, slots=True)
class _Process:
    child: "subprocess.Popen[bytes]"
    log: Path

    def wait_until_answered(self, url: str) -> None:
        """Return once `url` answers 200; raises `LaptopError` with the log's end if it never does."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.child.poll() is None:
            try:
                if httpx2.get(url, trust_env=False, timeout=2).status_code == httpx2.codes.OK:
                    return
            except httpx2.HTTPError:
                time.sleep(0.05)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise LaptopError(f"{url} does not answer; {self.log} ends with:\n{tail}")


@contextmanager
def _process(arguments: list[str], env: Mapping[str, str], data: Path) -> Iterator[_Process]:
    """Run `kpayd ARGUMENTS` until the block ends."""
    log_path = data / f"{arguments[0]}.log"
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            env=dict(env),
            cwd=data,  # so that no `.env` of the place we were called from is read
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours to pass on, in order
        )
        try:
            yield _Process(child, log_path)
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
