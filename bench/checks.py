"""Due checks against a slow gateway: how near to the limit, concurrency by latency, one worker comes, or two."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from app.dev.laptop import free_port
from bench.figures import Section, spread, two, whole
from bench.kernel import tree_cpu
from bench.servers import Server, started
from bench.store import REFID, Payments, Store
from tests.support import kpayd, query, settings

LATENCY = 0.2
WORKS = ((16, 1), (64, 1), (256, 1), (256, 2))
"""Checks at once, and the workers that share them."""

_POLL = 0.05
_NEVER_AGAIN = {"CHECK_SCHEDULE": "86400", "LOG_LEVEL": "ERROR"}
_HEAD = (
    *("checks at once", "workers", "checks", "a second", "limit", "of the limit", "what the cores allow"),
    *("CPU of the workers, µs each", "CPU of PostgreSQL, µs each", "CPU of the gateway, µs each"),
)
Found = tuple[float, float, float, float]
"""Rate and CPU microseconds each: workers, PostgreSQL, gateway."""


@contextmanager
def gateway(folder: Path) -> Iterator[Server]:
    """Run a gateway that takes its time."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway", str(port), str(LATENCY)]
    with started(command, Path.cwd(), {}, port, folder / "gateway.log") as server:
        yield server


def _answered(http: httpx2.Client) -> int:
    return int(http.get("/").text)


def _make_due(of: Payments, count: int) -> None:
    """Make the newest `count` payments due now, and no other."""
    numbers = f"generate_series({of.rows - count + 1}::bigint, {of.rows})"
    query(of.url, "UPDATE payments SET next_check_at = NULL WHERE next_check_at <= now()")
    query(
        of.url,
        "UPDATE payments SET status = 'pending', next_check_at = now(), leased_until = NULL, check_step = 0, "  # noqa: S608 - our own words
        f"wake_step = NULL, final_at = NULL WHERE refid = ANY(ARRAY(SELECT {REFID.format(n='n')} FROM {numbers} AS n))",
    )


def once(folder: Path, store: Store, of: Payments, checks: int, *, concurrency: int, workers: int) -> Found:
    """Let workers make so many checks, `concurrency` together; return rate and CPU from the first tenth to the end."""
    _make_due(of, checks)
    with (
        gateway(folder) as slow,
        # One client for all polls: to make one takes 20 ms of the cores that are measured.
        httpx2.Client(base_url=f"http://127.0.0.1:{slow.port}", trust_env=False) as http,
        ExitStack() as stack,
    ):
        env = settings(
            of.url,
            f"http://127.0.0.1:{slow.port}/",
            free_port(),
            _NEVER_AGAIN | {"CHECK_CONCURRENCY": str(concurrency // workers)},
        )
        running = [stack.enter_context(kpayd(folder, env, "worker")) for _ in range(workers)]

        def reach(count: int) -> tuple[int, float, float, float, float]:
            deadline = time.monotonic() + 60 + checks * LATENCY / concurrency * 10
            while (now := _answered(http)) < count:
                ended = any(worker.child.poll() is not None for worker in running)
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"{now} of {checks} checks: {[worker.words[-500:] for worker in running]}")
                time.sleep(_POLL)
            used = sum(tree_cpu(worker.child.pid) for worker in running)
            return now, time.monotonic(), used, store.cpu(), slow.cpu()

        first, last = reach(max(1, checks // 10)), reach(checks - concurrency // 2)
    made, seconds, *cpu = (after - before for before, after in zip(first, last, strict=True))
    of_worker, of_postgres, of_gateway = (used / made * 1e6 for used in cpu)
    return made / seconds, of_worker, of_postgres, of_gateway


def measure(folder: Path, store: Store, of: Payments, *, checks: int, rounds: int) -> Section:
    """Measure all works in turn."""
    found: dict[tuple[int, int], list[Found]] = {work: [] for work in WORKS}
    for _ in range(rounds):
        for (concurrency, workers), figures in found.items():
            figures.append(once(folder, store, of, checks, concurrency=concurrency, workers=workers))
            print(f"  {concurrency:>4} checks, workers: {workers} {figures[-1][0]:>9,.0f} a second", flush=True)
    section = Section(
        f"Due checks against a gateway that takes {LATENCY * 1000:.0f} ms, {of.rows:,} payments in the table",
        _HEAD,
        notes=[
            (
                "Workers are processes of `kpayd worker`, which share the checks at once; the gateway, in Python on "
                "uvloop, shares the cores. From the first tenth on, so that start-up is not in it."
            ),
            "What the cores allow: 1,000,000 by the CPU of one check, all three, for each core.",
        ],
    )
    for (concurrency, workers), figures in found.items():
        limit = concurrency / LATENCY
        rates, *cpu = (list(column) for column in zip(*figures, strict=True))
        shares = [rate / limit for rate in rates]
        allowed = [(os.cpu_count() or 1) * 1e6 / sum(used) for used in zip(*cpu, strict=True)]
        section.rows.append(
            [
                str(concurrency),
                str(workers),
                whole(checks),
                spread(rates, whole),
                whole(limit),
                spread(shares, two),
                spread(allowed, whole),
                *(spread(column, whole) for column in cpu),
            ]
        )
    return section
