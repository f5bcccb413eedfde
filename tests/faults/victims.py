"""Services that are killed on the way: a trap on their links to PostgreSQL and K-Pay, and one victim after another.

Every chunk of bytes that passes a proxy is a step. The trap counts them and kills the service at one: before the chunk
is handed on, or after. Victims are forked from a process that has imported the service and done nothing else: a real
`kpayd serve` in a tenth of the time.
"""

import asyncio
import contextlib
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from app.cli import main
from app.clients import Clients
from app.database import TELLING, open_database
from app.dev.laptop import free_port
from app.domain import Scope
from app.settings import environment
from bench.history import Call, reply_of
from tests.conftest import QUICK
from tests.given import Postgres, through, upstream
from tests.proxy import Direction, Watch, running_proxy
from tests.support import Json, Simulator, eventually, payment, settings

ON_HOLD = "250780000005"
CLIENT = "chain"
COMMIT = " to commit"

_PREPARING = (b"P", b"1")
"""How PostgreSQL's Parse and its answer begin: each connection prepares a statement when it first needs it."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["app.cli", "app.main", "app.server", "uvloop", "httpcore2", "tests.faults.victims"])


@dataclass(frozen=True)
class Point:
    """The n-th step of a scenario, and whether it was handed on before the service was killed."""

    step: int
    handed_on: bool


def points(steps: Sequence[str]) -> list[Point]:
    """Return every point of a scenario; after an answer that was heard comes the next request, or the end."""
    requests = [Point(n, handed_on) for n, step in enumerate(steps) if "asks" in step for handed_on in (False, True)]
    answers = [Point(n, handed_on=False) for n, step in enumerate(steps) if "tells" in step]
    return [*requests, *answers, Point(len(steps) - 1, handed_on=True)]


class Trap:
    """Counts the steps that pass two proxies, from the first that names a refid on, and kills at one of them."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.sprung = False
        self._refid = b""
        self._point: Point | None = None
        self._kill: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def arm(self, refid: str, point: Point | None, kill: Callable[[], None]) -> None:
        """Begin to count, and kill at `point`, if there is one."""
        with self._lock:
            self.steps, self.sprung = [], False
            self._refid, self._point, self._kill = refid.encode(), point, kill

    def disarm(self) -> Sequence[str]:
        """Stop counting and return the steps so far."""
        with self._lock:
            self._refid = b""
            return self.steps

    def watch(self, name: str) -> Watch:
        """Return what a proxy calls with each chunk."""

        def watch(direction: Direction, chunk: bytes) -> None:
            with self._lock:
                if not self._refid or not (self.steps or self._refid in chunk) or self.sprung:
                    return
                if name == "PostgreSQL" and chunk[:1] in _PREPARING:
                    return
                step = f"asks {name}" if direction == "request" else f"{name} tells"
                if direction == "request" and b"COMMIT" in chunk:
                    step += COMMIT
                if self.steps and self.steps[-1].removesuffix(COMMIT) == step.removesuffix(COMMIT):
                    return  # the rest of the same message
                self.steps.append(step)
                if self._point is None or self._point.step != len(self.steps) - 1:
                    return
                self.sprung = True
            if self._point.handed_on:
                asyncio.get_running_loop().call_soon(self._kill)  # the chunk leaves before that
                return
            self._kill()
            raise ConnectionAbortedError

        return watch


def run_victim(env: Mapping[str, str], arguments: Sequence[str], log: Path) -> None:
    """Be `kpayd ARGUMENTS`, in a process that was forked for it."""
    others = environment()
    os.environ.clear()
    os.environ.update(others | dict(env))
    os.chdir(log.parent)
    with log.open("ab") as words:
        for descriptor in (1, 2):
            os.dup2(words.fileno(), descriptor)
    sys.argv = ["kpayd", *arguments]
    main()


class Victim:
    """One kpayd process that will be killed."""

    def __init__(self, env: Mapping[str, str], arguments: Sequence[str], log: Path) -> None:
        self.process = PROCESSES.Process(target=run_victim, args=(env, arguments, log), daemon=True)
        self.process.start()

    def kill(self) -> None:
        """Kill it the hard way."""
        self.process.kill()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self.kill()
        self.process.join(10)


@dataclass
class Chain:
    """A database, its victims one after another, and all that was done to them."""

    folder: Path
    database_url: str
    simulator: Simulator
    links: Mapping[str, int]
    """The proxies' ports."""
    trap: Trap
    chance: random.Random
    port: int = field(default_factory=free_port)
    calls: list[Call] = field(default_factory=list)
    unheard: list[tuple[str, Json, Mapping[str, str]]] = field(default_factory=list)
    """Starts that were not answered."""
    killed: int = 0

    def __post_init__(self) -> None:
        async def make() -> str:
            async with open_database(self.database_url, pool=1) as database:
                return (await Clients(database).add(CLIENT, scopes=tuple(Scope))).key

        headers = {"Authorization": f"Bearer {asyncio.run(make())}"}
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False, timeout=20
        )

    def fork(self, *arguments: str, trapped: bool = True, more: Mapping[str, str] | None = None) -> Victim:
        """Start a service, its connections through the trap or past it, and wait until it answers."""
        database, gateway = self.database_url, f"{self.simulator.url}/"
        if trapped:
            database = through(self.database_url, self.links["PostgreSQL"])
            gateway = f"http://127.0.0.1:{self.links['K-Pay']}/"
        env = settings(database, gateway, self.port, QUICK | dict(more or {}))
        if arguments[0] == "serve":
            arguments = (*arguments, "--no-worker", "--port", str(self.port))
        victim = Victim(env, arguments, self.folder / f"{arguments[0]}.log")
        if arguments[0] == "serve":
            eventually(self._answers, seconds=30, every=0.02)
        return victim

    def _answers(self) -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return self.http.get("/healthz").status_code == httpx2.codes.OK
        return False

    def call(self, kind: str, refid: str, path: str, **request: Any) -> Call:  # noqa: ANN401 - httpx2's own
        """POST something and note what came of it."""
        began, status, saw, reply = time.monotonic(), None, {}, ""
        with contextlib.suppress(httpx2.TransportError):
            answer = self.http.post(path, **request)
            status, reply = answer.status_code, reply_of(answer.content)
            if kind != "postback" and answer.is_success:
                saw = {refid: str(answer.json()["status"])}
        body = request.get("content", b"")
        call = Call(kind, refid, began, time.monotonic(), status, saw, body, reply)
        self.calls.append(call)
        return call

    def start(self, refid: str, body: Json, headers: Mapping[str, str]) -> Call:
        """Start a payment, and note it where no answer came."""
        call = self.call("start", refid, "/v1/payments", json=body, headers=headers)
        if call.status is None:
            self.unheard.append((refid, body, headers))
        return call

    def repeat_some(self) -> None:
        """Do what callers do who got no answer: about half ask again."""
        unheard, self.unheard = self.unheard, []
        for start in unheard:
            if self.chance.random() < 0.5:
                self.start(*start)

    def decided(self, refid: str, statusid: str) -> str:
        """Start a payment that K-Pay decides without a word to the service, and return its refid."""
        eventually(lambda: self.start(refid, payment(ON_HOLD, refid=refid), {}).saw)
        self.simulator.settle(refid, statusid, postback=False)
        return refid


@contextlib.contextmanager
def running_chain(
    folder: Path, database_url: str, postgres: Postgres, simulator: Simulator, seed: int
) -> Iterator[Chain]:
    """Yield a chain with its two proxies."""
    folder.mkdir()
    trap = Trap()
    port = int(simulator.url.rsplit(":", 1)[1])
    with running_proxy(upstream(postgres)) as database, running_proxy(("127.0.0.1", port)) as gateway:
        database.watch, gateway.watch = trap.watch("PostgreSQL"), trap.watch("K-Pay")
        database.passes_over = TELLING.encode()
        links = {"PostgreSQL": database.port, "K-Pay": gateway.port}
        chain = Chain(folder, database_url, simulator, links, trap, random.Random(f"{seed} {folder.name}"))  # noqa: S311 - it must come again
        with chain.http:
            yield chain
