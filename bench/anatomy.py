"""Where the time of one postback goes: whose the CPU is, and what is waited for."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from app.dev.laptop import free_port
from bench import stacks
from bench.figures import BenchError, Sample, Section, one, spread, two, whole
from bench.postbacks import MOST
from bench.servers import Contender, Loaded, Postbacks, interleaved, served, started
from bench.store import Payments, Store
from tests.support import query, settings

CONNECTIONS = 32

_SAMPLED, _PLAIN = "kpayd, looked at", "kpayd, let alone"
_ROOT = Path(__file__).parent.parent
# Of connections alone: nobody times the WAL writer.
_WAL = """
SELECT sum(fsyncs)::float, sum(fsync_time), sum(write_time) FROM pg_stat_io
WHERE object = 'wal' AND backend_type = 'client backend'
"""


@dataclass(frozen=True, slots=True)
class Found:
    """One measurement."""

    sample: Sample
    shares: Mapping[str, float]
    """Of the service's CPU, by part."""
    inbox: float
    """Milliseconds that a postback was in the inbox,"""
    statement: float
    """and of these in the statement of its batch."""
    batch: float
    """Postbacks of one commit."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A service that counts whose its CPU is (bench/sampled.py), under load."""

    load: Loaded
    found: list[Found] = field(default_factory=list)

    def measure(self, seconds: float, connections: int) -> Sample:
        """Load it, and find out where the time went; raises `BenchError` where there is nothing to tell by."""
        before = self._metrics()
        sample = self.load.measure(seconds, connections)
        after = self._metrics()

        def told(name: str) -> float:
            return after[name] - before[name]

        looks = {part: told(f'bench_looks_total{{part="{part}"}}') for part in stacks.PARTS}
        if not (seen := sum(looks.values())):
            raise BenchError("the service was not looked at once: measure for longer")
        shares = {part: count / seen for part, count in looks.items()}
        postbacks = told("kpayd_postback_batch_sum")
        inbox, statement = (
            told(f"bench_in_{name}_seconds_total") / postbacks * 1000 for name in ("inbox", "statement")
        )
        batch = postbacks / told("kpayd_postback_batch_count")
        self.found.append(Found(sample, shares, inbox, statement, batch))
        return sample

    def _metrics(self) -> Mapping[str, float]:
        text = httpx2.get(f"http://127.0.0.1:{self.load.server.port}/metrics", trust_env=False).text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


@contextmanager
def sampled(folder: Path, store: Store, of: Payments) -> Iterator[Sampled]:
    """Run `kpayd serve --no-worker` so that it can be seen what it does."""
    port = free_port()
    env = settings(of.url, "http://127.0.0.1:9/", port, {})
    env["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench.sampled", "serve", "--no-worker", "--port", str(port)]
    with started(command, folder, env, port, folder / "sampled.log") as server:
        yield Sampled(Loaded(folder, store, server, Postbacks(of), MOST))


@contextmanager
def _timing(of: Payments) -> Iterator[None]:
    """Let PostgreSQL time its fsyncs on connections that are made meanwhile."""
    name = of.url.partition("@/")[2].partition("?")[0]
    query(of.url, f"ALTER DATABASE {name} SET track_wal_io_timing = on")
    try:
        yield
    finally:
        query(of.url, f"ALTER DATABASE {name} RESET track_wal_io_timing")


def measure(folder: Path, store: Store, of: Payments, *, seconds: float, rounds: int) -> Sequence[Section]:
    """Measure one process whose stacks are looked at, beside one that is let alone."""
    before = query(of.url, _WAL)[0]
    with _timing(of), sampled(folder, store, of) as seen, served(folder, of.url) as other:
        contenders: dict[str, Contender] = {
            _SAMPLED: seen,
            _PLAIN: Loaded(folder, store, other, Postbacks(of), MOST),
        }
        runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=CONNECTIONS)
    # Now: a connection tells the last of its figures when it ends.
    fsyncs, *milliseconds = (late - early for early, late in zip(before, query(of.url, _WAL)[0], strict=True))
    fsync, write = (each / fsyncs for each in milliseconds)
    found = seen.found[-rounds:]
    each = [(sample.server_each or 0.0) for sample in runs[_SAMPLED]]
    dearer = [mine / (sample.server_each or 0.0) for mine, sample in zip(each, runs[_PLAIN], strict=True)]
    return _cpu(found, dearer), _wall(found, fsync, write)


def _cpu(found: Sequence[Found], dearer: Sequence[float]) -> Section:
    each = [figures.sample.server_each or 0.0 for figures in found]
    section = Section(
        f"Where the CPU of one postback goes, {CONNECTIONS} connections",
        ("where", "CPU, µs each", "of the service's CPU, %"),
        notes=[
            (
                "The shares are of the moments when the process had used some milliseconds more of CPU "
                "(bench/sampled.py), the µs of the kernel's count. A moment belongs to the innermost part on Python's "
                "stack; C code to whoever called it, and so a write into a socket to its writer."
            ),
            f"A service that is looked at takes {spread(dearer, two)} times the CPU of one that is let alone.",
        ],
    )
    for part in stacks.PARTS:
        shares = [figures.shares[part] for figures in found]
        mine = [share * cpu for share, cpu in zip(shares, each, strict=True)]
        section.rows.append([part, spread(mine, whole), spread([share * 100 for share in shares], one)])
    section.rows.append(["the service, all told", spread(each, whole), "100"])
    section.rows.append(["PostgreSQL", spread([figures.sample.postgres_each for figures in found], whole), "-"])
    return section


def _wall(found: Sequence[Found], fsync: float, write: float) -> Section:
    section = Section(
        f"What one postback waits for, {CONNECTIONS} connections",
        ("what", "ms", "of the time, %"),
        notes=[
            "The mean time of a request is the number of connections by the rate; all rows together are that.",
            f"Postbacks of one commit: {spread([figures.batch for figures in found], one)}.",
            (
                "fsync and writing are the means of all rounds, by PostgreSQL's own count (pg_stat_io, "
                "track_wal_io_timing)."
            ),
        ],
    )
    every = [CONNECTIONS / figures.sample.rate * 1000 for figures in found]
    waits = {
        "before and after the inbox: sockets, the loop's turn, Python, wrk": [
            whole - figures.inbox for whole, figures in zip(every, found, strict=True)
        ],
        "in the inbox, while the batch before is written": [figures.inbox - figures.statement for figures in found],
        "the batch's statement: driver, PostgreSQL's work": [figures.statement - fsync - write for figures in found],
        "the WAL's writing": [write for _ in found],
        "the WAL's fsync": [fsync for _ in found],
    }
    for what, times in waits.items():
        shares = [mine / whole * 100 for mine, whole in zip(times, every, strict=True)]
        section.rows.append([what, spread(times, two), spread(shares, one)])
    section.rows.append(["all told", spread(every, two), "100"])
    return section
