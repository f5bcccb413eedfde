"""A payment's status read by its refid, beside PostgreSQL itself and the tutorials' handler."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.dev.laptop import free_port
from bench import peers, pgbench
from bench.figures import BenchError, Section, rate_head, rate_rows
from bench.servers import Contender, Fresh, Loaded, Server, as_service, interleaved, started
from bench.store import Payments, Store, refid_of
from bench.wrk import spoken

KPAYD, TWO, TUTORIAL = "kpayd, one process", "kpayd, two processes", "the tutorial FastAPI handler"
PGBENCH, SIMPLE = "pgbench, the same row", "pgbench, the same, not prepared"
BARE = "uvicorn alone, a fixed answer"
CONNECTIONS = (8, 32)
MOST = 15_000


@dataclass(frozen=True, slots=True)
class Reads:
    """Makes requests for any payment of so many, with a key where one is needed."""

    path: str
    rows: int
    key: str | None = None

    def __call__(self, count: int) -> Iterator[bytes]:
        """Yield so many."""
        chance = random.Random(count)  # noqa: S311 - it must come again
        headers = [("Authorization", f"Bearer {self.key}")] if self.key else []
        for _ in range(count):
            yield spoken("GET", f"{self.path}{refid_of(chance.randint(1, self.rows))}", headers=headers)


@contextmanager
def _bare(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.bare:answer", "--port", str(port), "--no-access-log"]
    with started(
        [*command, "--loop", "uvloop", "--http", "httptools"], Path.cwd(), {}, port, folder / "bare.log"
    ) as it:
        yield it


def measure(folder: Path, store: Store, of: Payments, *, seconds: float, rounds: int) -> Section:
    """Measure reads of payments drawn from all of the table."""
    section = Section(
        f"A payment read by its refid, {of.rows:,} payments in the table",
        rate_head("pgbench"),
        notes=[
            (
                "pgbench selects the same columns of a payment drawn in the same way, in one thread: prepared, and as "
                "`pgbench -S` comes, by the simple protocol, where PostgreSQL parses and plans each anew."
            ),
            (
                "kpayd looks up the caller's key (remembered for five seconds) and answers with the whole payment; the "
                "tutorial's handler asks for no key: `session.get` and a response model of 19 members."
            ),
            "uvicorn alone: an application that reads nothing and answers with an example (bench/bare.py).",
        ],
    )
    with ExitStack() as stack:
        server, service = stack.enter_context(as_service(folder, of.url))
        wanted = Fresh(Reads("/v1/payments/", of.rows, service.key))
        two, _ = stack.enter_context(as_service(folder, of.url, "--workers", "2"))
        contenders: dict[str, Contender] = {
            KPAYD: Loaded(folder, store, server, wanted, MOST),
            TWO: Loaded(folder, store, two, wanted, MOST),
            PGBENCH: pgbench.reads(folder, store, of),
            SIMPLE: pgbench.reads(folder, store, of, protocol="simple"),
            BARE: Loaded(folder, store, stack.enter_context(_bare(folder)), wanted, 4 * MOST),
        }
        try:
            made = stack.enter_context(peers.tutorial(folder, store, of))
            contenders[TUTORIAL] = Loaded(folder, store, made.server, Fresh(Reads("/payments/", of.rows)), 4_000)
        except BenchError as exc:
            section.rows.append([TUTORIAL, f"not measured: {' '.join(str(exc).split())}", *["-"] * 6])
        for connections in CONNECTIONS:
            runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=connections)
            section.rows += rate_rows(runs, PGBENCH, connections)
    return section
