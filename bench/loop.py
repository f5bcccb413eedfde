"""The whole loop, start, postback, confirmed: one process beside the sum of its statements in pgbench."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from app.dev.laptop import free_port
from bench import script, wrk
from bench.figures import BenchError, Sample, Section, rate_head, rate_rows, spread, whole
from bench.kernel import tree_cpu
from bench.pgbench import PgBench
from bench.relations import updated, updates
from bench.servers import Contender, interleaved
from bench.store import Payments, Store
from bench.tail import offered
from bench.wrk import spoken
from tests.support import Service, Simulator, answers, payment, query, run_service, run_simulator

CONNECTIONS = (8, 32)
LATENCIES = (0.0, 0.2)
ROWS = 10_000
MOST = 600
PAYER_DELAY = 0.01

PGBENCH = "pgbench, the same statements"
_WATCHED = ("payments", "events")
_PATIENCE = 60.0
_POLL = 0.2

_OPEN = "SELECT count(*) FROM payments WHERE created_at >= $1 AND final_at IS NULL"
# An entry's time is the moment of its writing; that of a reply is a commit before the 201.
_PLAYED = """
SELECT count(*) AS payments, count(ended) AS paid, extract(epoch FROM max(ended) - $1)::float AS seconds,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY milliseconds) AS p50,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY milliseconds) AS p99
FROM (
  SELECT ended, 1000 * extract(epoch FROM ended - taken) AS milliseconds FROM (
    SELECT min(e.created_at) FILTER (WHERE e.source = 'gateway_reply') AS taken,
        max(e.created_at) FILTER (WHERE e.type = 'payment.succeeded') AS ended
    FROM payments AS p JOIN events AS e ON e.refid = p.refid
    WHERE p.created_at >= $1 GROUP BY p.refid) AS each) AS times
"""


@dataclass(frozen=True, slots=True)
class Loop:
    """A service and its simulator, which answers after `latency` seconds, under callers who start payments."""

    folder: Path
    store: Store
    service: Service
    simulator: Simulator
    latency: float
    of_simulator: list[float] = field(default_factory=list)
    """CPU microseconds of the simulator for each payment, measurement by measurement."""

    def measure(self, seconds: float, connections: int) -> Sample:
        """Start as many payments as the service takes, and then half as many; p50 and p99 are of the latter.

        Each time all of them must have ended. Raises `BenchError` where one does not end as paid.
        """
        self.simulator.behave(latency=self.latency)
        pid, other = self.service.process.child.pid, self.simulator.process.child.pid
        before = tree_cpu(pid), self.store.cpu(), tree_cpu(other)
        most = self._played(lambda: self._start(seconds, connections))
        after = tree_cpu(pid), self.store.cpu(), tree_cpu(other)
        server, postgres, simulator = (late - early for early, late in zip(before, after, strict=True))
        self.of_simulator.append(simulator / most["payments"] * 1e6)
        rate = most["payments"] / most["seconds"] / 2
        requests = list(self._requests(max(1, int(rate * seconds))))
        half = self._played(lambda: uvloop.run(offered(self._port, requests, rate)))
        return Sample(most["payments"], most["seconds"], server, postgres, half["p50"], half["p99"])

    def _played(self, load: Callable[[], object]) -> Mapping[str, Any]:
        """Start payments by `load` and wait until all are final; return how many, in which time, and how late."""
        url = self.service.database_url
        began = query(url, "SELECT clock_timestamp()")[0][0]
        load()
        deadline = time.monotonic() + _PATIENCE
        while left := query(url, _OPEN, began)[0][0]:
            if time.monotonic() > deadline:
                raise BenchError(f"{left} payments are not final after {_PATIENCE:.0f} s; {self.service.process.log}")
            time.sleep(_POLL)
        played: Mapping[str, Any] = query(url, _PLAYED, began)[0]
        if played["paid"] < played["payments"]:
            raise BenchError(f"{played['payments'] - played['paid']} payments ended otherwise than paid")
        return played

    def _start(self, seconds: float, connections: int) -> None:
        wrk.run(
            self.folder,
            self._port,
            self._requests(int(MOST * max(1, seconds))),
            seconds=seconds,
            connections=connections,
            server_cpu=lambda: 0.0,  # it is counted until the last payment is final
            postgres_cpu=lambda: 0.0,
        )

    @property
    def _port(self) -> int:
        return int(self.service.url.rpartition(":")[2])

    def _requests(self, count: int) -> Iterator[bytes]:
        body = json.dumps(payment()).encode()
        for _ in range(count):
            yield spoken("POST", "/v1/payments", body, [("Authorization", f"Bearer {self.service.key}")])


def measure(folder: Path, store: Store, *, seconds: float, rounds: int) -> Section:
    """Measure a gateway that answers at once, one that takes its time, and PostgreSQL alone."""
    section = Section(
        f"The whole loop: start, postback, confirmed, {ROWS:,} payments in the table",
        rate_head("pgbench"),
        notes=[
            (
                "One `kpayd serve`, web and worker, and K-Pay's simulator, which answers after so many milliseconds; "
                f"its payers pay {PAYER_DELAY * 1000:.0f} ms after the reply. wrk starts payments on so many "
                "connections, and the clock runs until the last one is final."
            ),
            (
                "p50 and p99 are at half of that rate, offered by the clock: from the commit before the 201 to the "
                "change to final, as the timeline has them. In it are the payer, the postback, its commit, the check "
                "and its answer."
            ),
            (
                "pgbench plays the statements and transactions that the service's own parts were seen to send for one "
                "payment (bench/script.py), prepared, one payment after the other on each connection. What differs: "
                "the service shares a commit among many postbacks, a claim among many checks and a publication among "
                "many events, where pgbench takes each for one payment and waits in line for the feed's row; and it "
                "looks at keys, at what is due and at the outbox by the clock, and rings for other processes."
            ),
        ],
    )
    of = store.filled("loop", ROWS, twin=True)
    with ExitStack() as stack:
        simulator = stack.enter_context(run_simulator(folder, payer_delay=PAYER_DELAY))
        twin, sql = store.twin(of), script.captured(of.url, simulator)
        began, port = time.monotonic(), free_port()
        service = stack.enter_context(
            run_service(folder, of.url, simulator, {"CHECK_CONCURRENCY": str(max(CONNECTIONS))}, port=port)
        )
        answers(service.process, f"{service.url}/readyz")
        section.notes.append(f"The service was ready {time.monotonic() - began:.1f} s after its start.")
        loops = {latency: Loop(folder, store, service, simulator, latency) for latency in LATENCIES}
        contenders: dict[str, Contender] = {
            **{f"kpayd, K-Pay takes {latency * 1000:.0f} ms": loop for latency, loop in loops.items()},
            PGBENCH: PgBench(folder, store, twin, sql),
        }
        before = updates(of.url)
        for connections in CONNECTIONS:
            runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=connections)
            section.rows += rate_rows(runs, PGBENCH, connections)
        hot = updated(before, updates(of.url))
    _look_at(twin)
    spent = spread([each for loop in loops.values() for each in loop.of_simulator[-rounds:]], whole)
    section.notes.append(f"The simulator, in Python, took {spent} µs of CPU for each payment, of the same cores.")
    section.notes.append(f"HOT updates: {', '.join(f'{table} {hot[table]}' for table in _WATCHED)}.")
    return section


def _look_at(twin: Payments) -> None:
    """Raise `BenchError` where pgbench has not brought all of its payments to their end."""
    unpaid = f"SELECT count(*) FROM payments WHERE {script.MADE} AND status <> 'succeeded'"  # noqa: S608 - our own words
    other = query(twin.url, unpaid)[0][0]
    if other:
        raise BenchError(f"{other} payments of pgbench's did not come to their end: its script lacks something")
