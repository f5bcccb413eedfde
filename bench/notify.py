"""Notifications: how many a second one worker delivers, and how long after the commit they arrive.

A backlog of events stands in the outbox and is published and delivered; the limit is the same receiver under wrk, which
sends it the very bytes of a notification that came. Then events are written at a gentle pace, and the delay is from an
event's timestamp, which is taken just before its commit, to the arrival of its notification.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx2

from app.clients import Clients
from app.database import async_url, open_database
from app.dev.laptop import free_port
from app.herald import CHANNEL
from app.models import payments
from app.timeline import state
from bench import wrk
from bench.figures import BenchError, Sample, Section, ratios, spread, two, whole
from bench.kernel import tree_cpu
from bench.receiver import address
from bench.relations import Updates, updated, updates
from bench.servers import Contender, Server, interleaved, started
from bench.store import Store, refid_of
from tests.support import Process, kpayd, query, settings

RECEIVERS = (1, 10, 100)
LIMIT_BY = 32
BACKLOG = 300
"""Events in the outbox for each second that a measurement shall take."""
PACE = 50
"""Events a second while the delay is measured."""

_LIMIT = "the receiver alone, under wrk"
_PAID = 1
"""A payment that was paid: whatever is told is told of copies of it."""
_ROWS = 1_000
_PATIENCE = 60.0
_POLL = 0.05
_HEAD = (
    *("what", "notifications a second", "of the limit", "CPU of the worker, µs each"),
    *("CPU of PostgreSQL, µs each", "CPU of the receiver, µs each", "delay, p50, ms", "delay, p99, ms"),
)
_COPIED = ", ".join(column.name for column in payments.c if column.name not in ("refid", "client"))
_TELL = f"""
WITH made AS (
    INSERT INTO payments (refid, client, {_COPIED})
    SELECT 'N' || gen_random_uuid(), ($2::text[])[1 + n % cardinality($2::text[])], {_COPIED}
    FROM payments, generate_series(1, $3) AS n WHERE refid = $1 RETURNING refid)
INSERT INTO events (refid, seq, type, source, status, state)
SELECT refid, 1, 'payment.succeeded', 'checkstatus', 'succeeded', $4::jsonb FROM made
"""  # noqa: S608 - our own columns
_OPEN = "SELECT count(*) FROM deliveries WHERE next_at IS NOT NULL"


class Receiver:
    """The receivers, in one process."""

    def __init__(self, server: Server, http: httpx2.Client) -> None:
        self.server = server
        self._http = http

    def count(self) -> int:
        """Return how many notifications have come."""
        return int(self._http.get("/").text)

    def arrived(self) -> Sequence[tuple[float, float]]:
        """Return when each came that was not asked for before, and its event's timestamp."""
        lines = [line.partition(" ") for line in self._http.get("/arrived").text.splitlines()]
        return [(float(at), datetime.fromisoformat(event).timestamp()) for at, _, event in lines]

    def last(self) -> bytes:
        """Return the last notification byte for byte."""
        return self._http.get("/last").content


@contextmanager
def receiving(folder: Path) -> Iterator[Receiver]:
    """Run the receivers."""
    port = free_port()
    command = [sys.executable, "-m", "bench.receiver", str(port), str(max(RECEIVERS))]
    with (
        started(command, Path.cwd(), {}, port, folder / "receiver.log") as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http,
    ):
        yield Receiver(server, http)


@dataclass(frozen=True, slots=True)
class Limit:
    """The receiver under wrk."""

    folder: Path
    store: Store
    receiver: Receiver

    def measure(self, seconds: float, connections: int) -> Sample:
        """Send it the last notification again and again; the server's CPU is the receiver's."""
        sample = wrk.run(
            self.folder,
            self.receiver.server.port,
            [self.receiver.last()],
            seconds=seconds,
            connections=connections,
            server_cpu=self.receiver.server.cpu,
            postgres_cpu=self.store.cpu,
            again=True,
        )
        self.receiver.arrived()
        return sample


@dataclass(frozen=True, slots=True)
class Deliveries:
    """One worker on a database of its own, with so many clients that are notified."""

    store: Store
    receiver: Receiver
    worker: Process
    url: str
    clients: Sequence[str]
    of_receiver: list[float] = field(default_factory=list)
    """CPU microseconds of the receiver for each notification, measurement by measurement."""

    def measure(self, seconds: float, _connections: int) -> Sample:
        """Deliver a backlog, then events at a gentle pace; p50 and p99 are the delays of those.

        Raises `BenchError` where not all arrive.
        """
        self.receiver.arrived()
        pid, count = self.worker.child.pid, max(1, int(BACKLOG * seconds))
        before = tree_cpu(pid), self.store.cpu(), self.receiver.server.cpu()
        began = asyncio.run(self._told(count, at_once=True))
        times = self._delivered(count)
        after = tree_cpu(pid), self.store.cpu(), self.receiver.server.cpu()
        worker, postgres, receiver = (late - early for early, late in zip(before, after, strict=True))
        self.of_receiver.append(receiver / count * 1e6)
        paced = max(1, int(PACE * seconds))
        asyncio.run(self._told(paced, at_once=False))
        delays = sorted((at - event) * 1000 for at, event in self._delivered(paced))
        p50, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
        return Sample(count, max(at for at, _ in times) - began, worker, postgres, p50, p99)

    async def _told(self, count: int, *, at_once: bool) -> float:
        """Commit so many events, in one commit or by the clock, and ring; return when the last commit was."""
        connection = await asyncpg.connect(async_url(self.url).replace("+asyncpg", ""))
        try:
            paid = await connection.fetchrow("SELECT * FROM payments WHERE refid = $1", refid_of(_PAID))
            known = json.dumps(state(dict(paid)))
            began, committed = time.monotonic(), time.time()
            for number in range(1 if at_once else count):
                await asyncio.sleep(began + number / PACE - time.monotonic())
                # Each time from another client on: one event is the first one's.
                names = [*self.clients[number % len(self.clients) :], *self.clients[: number % len(self.clients)]]
                await connection.execute(_TELL, refid_of(_PAID), names, count if at_once else 1, known)
                committed = time.time()
                await connection.execute("SELECT pg_notify($1, 'p:-')", CHANNEL)
            return committed
        finally:
            await connection.close()

    def _delivered(self, count: int) -> Sequence[tuple[float, float]]:
        """Wait until so many have arrived and are written down as delivered; return their times and events' times."""
        deadline, arrived = time.monotonic() + _PATIENCE, list(self.receiver.arrived())
        while len(arrived) < count or query(self.url, _OPEN)[0][0]:
            if time.monotonic() > deadline or self.worker.child.poll() is not None:
                raise BenchError(f"{len(arrived)} of {count} notifications arrived: {self.worker.words[-500:]}")
            time.sleep(_POLL)
            arrived += self.receiver.arrived()
        return arrived


async def _add(url: str, port: int, names: Sequence[str]) -> None:
    async with open_database(url, pool=1) as database:
        clients = Clients(database)
        for number, name in enumerate(names):
            await clients.add(name, webhook_url=f"http://{address(number)}:{port}/{name}")


@contextmanager
def delivering(folder: Path, store: Store, receiver: Receiver, count: int) -> Iterator[Deliveries]:
    """Run a worker that notifies so many clients, each at a receiver of its own."""
    url = store.filled(f"notify_{count}", _ROWS).url
    names = [f"bench-{number}" for number in range(count)]
    asyncio.run(_add(url, receiver.server.port, names))
    env = settings(url, "http://127.0.0.1:9/", free_port(), {"WEBHOOK_HOSTS": "127.0.0.0/8"})
    with kpayd(folder, env, "worker") as worker:
        yield Deliveries(store, receiver, worker, url, names)


def measure(folder: Path, store: Store, *, seconds: float, rounds: int) -> Section:
    """Measure few receivers and many in turn, and the limit beside them."""
    section = Section(
        "Notifications delivered by one worker",
        _HEAD,
        notes=[
            (
                "One `kpayd worker`, and receivers that answer 200 at once, in one process, each at an address of its "
                "own. The rate is that of a backlog, from its commit to the last arrival: events are published, "
                "claimed, signed, sent and written down. The limit is what wrk can do with the very bytes of a "
                f"notification on {LIMIT_BY} connections."
            ),
            (
                f"The delay is from an event's timestamp, just before its commit, to the arrival, at {PACE} events a "
                "second."
            ),
        ],
    )
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(folder))
        works = {
            f"kpayd, receivers: {count:,}": stack.enter_context(delivering(folder, store, receiver, count))
            for count in RECEIVERS
        }
        before = {name: updates(work.url) for name, work in works.items()}
        contenders: dict[str, Contender] = {**works, _LIMIT: Limit(folder, store, receiver)}
        runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=LIMIT_BY)
        for name, work in works.items():
            samples = runs[name]
            section.rows.append(
                [
                    name,
                    spread([sample.rate for sample in samples], whole),
                    spread(ratios(runs, name, _LIMIT), lambda share: f"{share:.3f}"),
                    spread([sample.server_each for sample in samples], whole),
                    spread([sample.postgres_each for sample in samples], whole),
                    spread(work.of_receiver[-rounds:], whole),
                    spread([sample.p50 for sample in samples], two),
                    spread([sample.p99 for sample in samples], two),
                ]
            )
        rates, cpu = zip(*((sample.rate, sample.server_each) for sample in runs[_LIMIT]), strict=True)
        section.rows.append([_LIMIT, spread(rates, whole), "1", "-", "-", spread(cpu, whole), "-", "-"])
        section.notes.append(f"HOT updates of deliveries and events: {'; '.join(_hot(works, before))}.")
    return section


def _hot(works: Mapping[str, Deliveries], before: Mapping[str, Updates]) -> Iterator[str]:
    for name, work in works.items():
        hot = updated(before[name], updates(work.url))
        yield f"{name}: {hot['deliveries']}, {hot['events']}"
