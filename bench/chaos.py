"""Chaos: two services, one PostgreSQL and one K-Pay under mixed load, while processes die and links break.

    .venv/bin/python -m bench.chaos --seed 7 --seconds 60

What happens when is drawn from the seed alone: kill -9 of a service and of PostgreSQL, a process that stands still,
every fault of `tests/proxy.py` on every link. Then all of it ends, every payment must come to K-Pay's truth within
two minutes, and the history of all that anybody was told is checked (`bench.history`). Exit code 1 where it does not
hold. K-Pay is never killed: its ledger is the truth that is compared with.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from app.clients import Clients
from app.database import open_database
from app.dev.laptop import free_port
from app.dev.postgres import EmbeddedPostgres, running
from app.domain import Scope
from app.schema import migrate
from bench.callers import CLIENT, FALSE, LATE, UNDECIDED, Callers
from bench.history import Call, Entry, History, Known, Stored, converged, reply_of, violations
from tests.conftest import QUICK
from tests.proxy import Fault, Proxy, Upstream, running_proxy
from tests.support import (
    Json,
    Process,
    Simulator,
    answers,
    create_database,
    kpayd,
    query,
    run_simulator,
    settings,
)

CONVERGE_SECONDS = 120.0
"""How long the end may take: longer than a dead process's lease and the breaker's longest pause together."""
_LAST_POSTBACKS = 6.0
"""How long K-Pay goes on sending a postback that nobody takes, at these payers' pace."""

NODES = ("a", "b")
LINKS = tuple(f"{link} {node}" for link in ("database", "K-Pay", "front") for node in NODES)


_AMOUNTS: Mapping[str, Callable[[random.Random], float]] = {
    Fault.TRUNCATE: lambda chance: chance.randrange(1, 300),
    Fault.DRIBBLE: lambda chance: chance.uniform(0.001, 0.05),
    Fault.DELAY: lambda chance: chance.uniform(0.05, 1.0),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to `target` from `at` on, for so many seconds."""

    at: float
    seconds: float
    what: str
    target: str
    amount: float = 0.0


def schedule(seed: int, seconds: float) -> tuple[Sequence[Step], Sequence[Step]]:
    """Return what happens to processes, and to links beside it; each kind has its turn before any comes again."""
    longest = min(15.0, max(1.5, seconds / 15))
    chance = random.Random(f"schedule {seed}")  # noqa: S311 - it must come again
    harms = [("kill", target) for target in ("a", "b", "PostgreSQL")]
    harms += [("freeze", target) for target in ("a", "b", "PostgreSQL", "K-Pay")]
    faults = [(fault.value, link) for fault in Fault if fault is not Fault.NONE for link in LINKS]
    return _lane(chance, harms, seconds, longest), _lane(chance, faults, seconds, longest)


def _lane(chance: random.Random, kinds: Sequence[tuple[str, str]], seconds: float, longest: float) -> Sequence[Step]:
    steps: list[Step] = []
    deck: list[tuple[str, str]] = []
    at = chance.uniform(0.3, 1.5)
    while at < seconds - 0.5:
        deck = deck or chance.sample(kinds, len(kinds))
        what, target = deck.pop()
        lasts = min(chance.uniform(0.2, longest), seconds - at)
        amount = _AMOUNTS[what](chance) if what in _AMOUNTS else 0.0
        steps.append(Step(at, lasts, what, target, amount))
        at += lasts + chance.uniform(0.1, 1.2)
    return steps


class Node:
    """One `kpayd serve`, on a fixed port, started again and again."""

    def __init__(self, folder: Path, env: Mapping[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._run = (folder, env, "serve", "--port", str(port))
        self._stack = ExitStack()
        self.deaths: list[str] = []
        """Last words of processes that ended and were not killed."""
        self.start()

    def start(self) -> None:
        """Start it; not waiting until it is up."""
        self.process: Process = self._stack.enter_context(kpayd(*self._run))

    def kill(self) -> None:
        """Kill it, and note if it was dead already."""
        if self.process.child.poll() is not None:
            self.deaths.append(f"exit code {self.process.child.returncode}: {self.process.words[-2000:]}")
        self.process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.child.send_signal(number)

    def end(self) -> None:
        """Stop it in order."""
        if self.process.child.poll() is not None:
            self.kill()
        self._stack.close()


@dataclass
class World:
    """Everything that runs."""

    server: EmbeddedPostgres
    simulator: Simulator
    links: Mapping[str, Proxy]
    nodes: Mapping[str, Node]
    key: str
    done: Counter[str] = field(default_factory=Counter)
    """What was done to it."""

    @property
    def database_url(self) -> str:
        """The database, past the proxies."""
        return self.server.url_of("kpayd")

    async def harm(self, steps: Sequence[Step], until: float) -> None:
        """Do what one lane of the schedule says, each step when its time has come and the one before is over."""
        began = time.monotonic()
        for step in steps:
            await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
            if time.monotonic() >= until:
                return
            self.done[f"{step.what} {step.target}" if step.what in ("kill", "freeze") else step.what] += 1
            await self._do(step)

    async def _do(self, step: Step) -> None:
        match step.what, step.target:
            case "kill", "PostgreSQL":
                self.server.signal(signal.SIGKILL)
                await asyncio.sleep(min(step.seconds, 1.0))
                await asyncio.to_thread(self.server.start)
            case "kill", node:
                self.nodes[node].kill()
                await asyncio.sleep(min(step.seconds, 1.0))
                self.nodes[node].start()
                await self._is_up(self.nodes[node])  # a service that never gets up proves nothing
            case "freeze", target:
                stop = {"PostgreSQL": self.server.signal, "K-Pay": self.simulator.process.child.send_signal}
                send = stop.get(target) or self.nodes[target].signal
                send(signal.SIGSTOP)
                try:
                    await asyncio.sleep(step.seconds)
                finally:
                    send(signal.SIGCONT)  # a server that stands still cannot be stopped
            case fault, link:
                self.links[link].set(Fault(fault), step.amount)
                await asyncio.sleep(step.seconds)
                self.links[link].set(Fault.NONE)

    async def calm(self) -> None:
        """Wait until both services answer."""
        for node in self.nodes.values():
            await self._is_up(node)

    async def _is_up(self, node: Node) -> None:
        await asyncio.to_thread(answers, node.process, f"{node.url}/healthz")


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Run all of it in `folder`."""
    with ExitStack() as stack:
        server = stack.enter_context(running(folder / "data"))
        create_database(server, "kpayd", template="template0")
        migrate(server.url_of("kpayd"))
        simulator = stack.enter_context(run_simulator(folder))
        links, nodes = {}, {}
        for name in NODES:
            port = free_port()
            gateway = ("127.0.0.1", int(simulator.url.rsplit(":", 1)[1]))
            ends: Mapping[str, Upstream] = {
                "database": str(server.socket),
                "K-Pay": gateway,
                "front": ("127.0.0.1", port),
            }
            for link, end in ends.items():
                links[f"{link} {name}"] = stack.enter_context(running_proxy(end))
            database = f"postgresql://postgres@127.0.0.1:{links[f'database {name}'].port}/kpayd"
            more = QUICK | {"PUBLIC_URL": links[f"front {name}"].url}
            env = settings(database, f"{links[f'K-Pay {name}'].url}/", port, more)
            nodes[name] = Node(folder, env, port)
            stack.callback(nodes[name].end)
        yield World(server, simulator, links, nodes, asyncio.run(_key(server.url_of("kpayd"))))


async def _key(database_url: str) -> str:
    async with open_database(database_url, pool=1) as database:
        return (await Clients(database).add(CLIENT, scopes=tuple(Scope))).key


@dataclass
class Report:
    """What came of a run."""

    seed: int
    seconds: float
    payments: int
    steps: Counter[str]
    answers: Counter[str]
    violations: Sequence[str]
    converged_in: float | None = None

    def lines(self) -> Iterator[str]:
        """Tell it."""
        kills = ", ".join(
            f"{what.removeprefix('kill ')} {count}"
            for what, count in sorted(self.steps.items())
            if what.startswith("kill")
        )
        others = ", ".join(
            f"{what} {count}" for what, count in sorted(self.steps.items()) if not what.startswith("kill")
        )
        yield f"seed {self.seed}, {self.seconds:g} s, {self.payments} payments"
        yield f"kill -9: {kills}"
        yield f"faults: {others}"
        yield f"answers: {', '.join(f'{what} {count}' for what, count in sorted(self.answers.items()))}"
        took = "never" if self.converged_in is None else f"in {self.converged_in:.1f} s"
        yield f"converged {took}; mismatches: {len(self.violations)}"
        yield from self.violations


_PAYMENTS = """
    SELECT refid, status, last_seq, (
        SELECT coalesce(array_agg((seq, type, e.status, source, coalesce(retcode, statusid, '')) ORDER BY seq), '{}')
        FROM (SELECT * FROM events AS each WHERE each.refid = p.refid) AS e
    ) AS events FROM (SELECT refid, status, last_seq FROM payments) AS p
"""
"""Rows and timelines in one statement: a snapshot of both."""


def gathered(database_url: str, simulator: Simulator, calls: Sequence[Call]) -> History:
    """Return these calls with what the database and K-Pay know of their payments."""
    ledger = simulator.http.get("/_simulator/payments").json()
    rows = query(database_url, _PAYMENTS)
    stored = {row["refid"]: Stored(row["status"], row["last_seq"], _timeline(row["events"])) for row in rows}
    bodies = query(database_url, "SELECT refid, body FROM bodies WHERE source = 'postback'")
    ours = {call.refid for call in calls} | set(stored)
    return History(
        calls,
        stored,
        {(row["refid"], row["body"]) for row in bodies},
        {each["refid"]: _known(each) for each in ledger["items"] if each["refid"] in ours},
        {refid: times for refid, times in ledger["not_recorded"].items() if refid in ours},
    )


def _known(payment: Json) -> Known:
    taken = [each["body"].encode() for each in payment["postbacks"] if reply_of(each["answer"].encode()) == "OK"]
    return Known(payment["statusid"], payment["requests"], taken)


def _timeline(events: Sequence[tuple[int, str, str, str, str]]) -> Sequence[Entry]:
    return [Entry(*event) for event in events]


def settle_all(simulator: Simulator, seed: int) -> None:
    """Let every payer who has waited so far decide, and K-Pay say again what nobody took of a late success."""
    chance = random.Random(f"payers {seed}")  # noqa: S311 - it must come again
    for each in simulator.http.get("/_simulator/payments").json()["items"]:
        heard = any(said["statusid"] == "01" and said["status"] == httpx2.codes.OK for said in each["postbacks"])
        if each["behaviour"] in UNDECIDED and each["statusid"] == "03":
            simulator.settle(each["refid"], chance.choice(["01", "02"]))
        elif each["behaviour"] in FALSE and each["statusid"] == "03":
            simulator.settle(each["refid"], "02")
        elif each["behaviour"] in LATE and each["statusid"] == "01" and not heard:
            simulator.settle(each["refid"], "01")


async def play(world: World, seed: int, seconds: float) -> Report:
    """Let chaos rule for so long, then order; return what came of it. Fails where a service ends by itself."""
    await world.calm()
    until = time.monotonic() + seconds
    callers = Callers([world.links[f"front {node}"].url for node in NODES], world.key, world.simulator.url, seed)
    await asyncio.gather(callers.run(seconds), *(world.harm(lane, until) for lane in schedule(seed, seconds)))
    began = time.monotonic()
    await world.calm()
    await asyncio.sleep(_LAST_POSTBACKS)
    await asyncio.to_thread(settle_all, world.simulator, seed)
    converged_in = None
    while converged_in is None and time.monotonic() - began < CONVERGE_SECONDS:
        await asyncio.sleep(0.5)
        history = await asyncio.to_thread(gathered, world.database_url, world.simulator, callers.calls)
        if not list(converged(history)):
            converged_in = time.monotonic() - began
    history = await asyncio.to_thread(gathered, world.database_url, world.simulator, callers.calls)
    deaths = [f"a service died: {words}" for node in world.nodes.values() for words in node.deaths]
    found = [*violations(history), *deaths]
    return Report(seed, seconds, len(history.stored), world.done, callers.answers, found, converged_in)


def run(seed: int, seconds: float) -> Report:
    """Run all of it and return what came of it."""
    with tempfile.TemporaryDirectory(prefix="kpayd-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with running_world(folder) as world:
            return asyncio.run(play(world, seed, seconds))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=60)
    wanted = parser.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    report = run(wanted.seed, wanted.seconds)
    print("\n".join(report.lines()))
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
