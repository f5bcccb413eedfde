"""Servers that are measured: kpayd and its peers, as processes that are loaded in turn."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2

from app.dev.laptop import free_port
from app.settings import PREFIX, Settings, environment
from bench import wrk
from bench.figures import BenchError, Refused, Runs, Sample
from bench.kernel import tree_cpu, tree_megabytes
from bench.store import Payments, Store
from bench.wrk import spoken
from tests.support import Service, answers, kpayd, settings

_START_SECONDS = 60
_WARM_SECONDS = 1.0
_ATTEMPTS = 3
_PAUSE = 2.0


class Contender(Protocol):
    """Whatever can be measured for a while under so many connections."""

    def measure(self, seconds: float, connections: int) -> Sample:
        """Load it and return what it did."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and its first process."""

    pid: int
    port: int

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes."""
        return tree_cpu(self.pid)

    def megabytes(self) -> float:
        """Return the resident memory of all its processes."""
        return tree_megabytes(self.pid)


class Requests(Protocol):
    """Makes requests, no two alike."""

    def make(self, count: int) -> Iterator[bytes]:
        """Yield so many."""

    def were_sent(self, count: int) -> None:
        """Take note that so many were sent: the next ones are others."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """Requests that are new whenever they are made."""

    made_by: Callable[[int], Iterator[bytes]]

    def make(self, count: int) -> Iterator[bytes]:
        """Yield so many."""
        return self.made_by(count)

    def were_sent(self, count: int) -> None:
        """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class Postbacks:
    """A postback for each; `speak` makes a request of the path, the body and its number."""

    of: Payments
    speak: Callable[[str, bytes, int], bytes] = lambda path, body, _: spoken("POST", path, body)

    def make(self, count: int) -> Iterator[bytes]:
        """Yield so many."""
        for number, (path, body) in enumerate(self.of.postbacks(count), self.of.sent):
            yield self.speak(path, body, number)

    def were_sent(self, count: int) -> None:
        """Take note that so many were sent."""
        self.of.sent += count


@dataclass(frozen=True, slots=True)
class Loaded:
    """A server under wrk. `most` is more than it can do in a second: so many requests are made before."""

    folder: Path
    store: Store
    server: Server
    requests: Requests
    most: int

    def measure(self, seconds: float, connections: int) -> Sample:
        """Load it and return what it did."""
        sample = wrk.run(
            self.folder,
            self.server.port,
            self.requests.make(int(self.most * max(1, seconds))),
            seconds=seconds,
            connections=connections,
            server_cpu=self.server.cpu,
            postgres_cpu=self.store.cpu,
        )
        self.requests.were_sent(sample.requests + connections + 1)
        return sample


def interleaved(contenders: Mapping[str, Contender], *, seconds: float, rounds: int, connections: int) -> Runs:
    """Measure all of them in turn, round after round, so that each has its share of every hour of the machine."""
    runs: dict[str, list[Sample]] = {name: [] for name in contenders}
    for contender in contenders.values():
        _measured(contender, _WARM_SECONDS, connections)
    for _ in range(rounds):
        for name, contender in contenders.items():
            sample = _measured(contender, seconds, connections)
            runs[name].append(sample)
            print(f"  {name:<44}{connections:>4} connections {sample.rate:>9,.0f} a second", flush=True)
    return runs


def _measured(contender: Contender, seconds: float, connections: int) -> Sample:
    """Measure once, and again where a machine with too much else to do made a server turn callers away."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return contender.measure(seconds, connections)
        except Refused as exc:
            print(f"  once again: {exc}", flush=True)
            time.sleep(_PAUSE)
    return contender.measure(seconds, connections)


def settings_of(url: str, gateway: str) -> Settings:
    """Return the settings of a service whose parts run in this process; nobody calls it back."""
    env = settings(url, gateway, 9, {"GATEWAY_TIMEOUT": "3600"})
    return Settings.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in env.items()})


@contextmanager
def served(folder: Path, url: str, *arguments: str, gateway: str = "http://127.0.0.1:9/") -> Iterator[Server]:
    """Run `kpayd serve --no-worker` over a database."""
    port = free_port()
    env = settings(url, gateway, port, {})
    with kpayd(folder, env, "serve", "--no-worker", "--port", str(port), *arguments) as process:
        answers(process, f"http://127.0.0.1:{port}/readyz")
        yield Server(process.child.pid, port)


@contextmanager
def as_service(folder: Path, url: str, *arguments: str) -> Iterator[tuple[Server, Service]]:
    """Run `kpayd serve --no-worker` with an API client; give it more arguments where there are any."""
    port = free_port()
    env = settings(url, "http://127.0.0.1:9/", port, {})
    with kpayd(folder, env, "serve", "--no-worker", "--port", str(port), *arguments) as process:
        answers(process, f"http://127.0.0.1:{port}/readyz")
        service = Service(process, f"http://127.0.0.1:{port}", url, env)
        with service.http:
            yield Server(process.child.pid, port), service


@contextmanager
def started(
    command: Sequence[str | Path], folder: Path, env: Mapping[str, str], port: int, log: Path
) -> Iterator[Server]:
    """Run a server of others until the block ends. Raises `BenchError` with its last words where it does not start."""
    with log.open("wb") as words:
        child = subprocess.Popen(command, env=environment() | dict(env), cwd=folder, stdout=words, stderr=words)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"it does not start: {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.1)
        yield Server(child.pid, port)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _listens(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=5)
    except httpx2.HTTPError:
        return False
    return True
