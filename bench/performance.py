"""Everything that is measured, beside PostgreSQL itself and the peers, by one command that sets up what it needs.

    .venv/bin/python -m bench.performance
    .venv/bin/python -m bench.performance --quick --only postbacks reads

Contenders have their turns one after the other, round after round, on one machine and one PostgreSQL with its
durability as it comes. The whole run writes docs/performance.md; a part of it, or a quick one, is only printed,
unless `--out` says where to. Ratios and CPU count; the same code does twice as much at another hour.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from app.dev.postgres import binaries
from bench import anatomy, checks, footprint, growth, loop, notify, postbacks, reading, tail, wrk
from bench.figures import BenchError, Section
from bench.kernel import machine
from bench.peers.environments import versions
from bench.store import Payments, Store, stored

REPORT = Path(__file__).parent.parent / "docs" / "performance.md"
_SMALLEST, _LARGEST = 10_000, 5_000_000
_QUICK = {"seconds": 2.0, "rounds": 1, "rows": 20_000, "checks": 500, "soak": 0.0}
_OURS = ("fastapi", "starlette", "sqlalchemy", "asyncpg", "uvicorn", "uvloop", "httptools", "pydantic", "httpx2")

_HOW = (
    "What `bench/performance.py` found; it says how. Medians over the rounds, with minimum and maximum. **Compare, do "
    "not quote**: load, service and PostgreSQL share the cores, and the same code does twice as much at another hour. "
    "A ratio is of two neighbours of the same round. CPU is the kernel's count of all processes of a server."
)
_POSTGRES = (
    "- PostgreSQL: fsync, synchronous_commit and full_page_writes on; shared_buffers 1 GB; no checkpoint falls into a "
    "measurement (max_wal_size 16 GB, checkpoint_timeout 1 h); autovacuum as it comes"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: where, on what, and how long."""

    folder: Path
    store: Store
    of: Payments
    wanted: argparse.Namespace

    @property
    def time(self) -> tuple[float, int]:
        """Seconds of each measurement, and rounds."""
        return self.wanted.seconds, self.wanted.rounds


def _postbacks(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [postbacks.against_postgres(run.folder, run.store, run.of, seconds=seconds, rounds=rounds)]


def _peers(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [postbacks.against_peers(run.folder, run.store, run.of, seconds=seconds, rounds=rounds)]


def _reads(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [reading.measure(run.folder, run.store, run.of, seconds=seconds, rounds=rounds)]


def _tail(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [tail.measure(run.folder, run.store, run.of, seconds=seconds, rounds=rounds)]


def _checks(run: Run) -> Sequence[Section]:
    most = min(run.wanted.checks, run.of.rows)
    return [checks.measure(run.folder, run.store, run.of, checks=most, rounds=run.wanted.rounds)]


def _anatomy(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return anatomy.measure(run.folder, run.store, run.of, seconds=seconds, rounds=rounds)


def _loop(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [loop.measure(run.folder, run.store, seconds=seconds, rounds=rounds)]


def _notifications(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    return [notify.measure(run.folder, run.store, seconds=seconds, rounds=rounds)]


def _memory(run: Run) -> Sequence[Section]:
    return [footprint.measure(run.folder, run.store, run.of, seconds=run.wanted.seconds, soak=run.wanted.soak)]


def _growth(run: Run) -> Sequence[Section]:
    seconds, rounds = run.time
    sizes = [run.store.filled("small", min(_SMALLEST, run.of.rows)), run.of]
    if run.wanted.full:
        sizes.append(run.store.filled("large", _LARGEST))
    return growth.measure(run.folder, run.store, sizes, seconds=seconds, rounds=rounds)


# Those that leave many payments due come last: a table that was worked hard is another table.
WORKS: Mapping[str, Callable[[Run], Sequence[Section]]] = {
    "postbacks": _postbacks,
    "peers": _peers,
    "reads": _reads,
    "tail": _tail,
    "anatomy": _anatomy,
    "loop": _loop,
    "notifications": _notifications,
    "memory": _memory,
    "growth": _growth,
    "checks": _checks,
}


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return what is wanted."""
    parser = argparse.ArgumentParser(prog="python -m bench.performance", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="payments in the table")
    parser.add_argument("--checks", type=int, default=10_000, help="due checks")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of load between two looks at the memory")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--full", action="store_true", help="growth up to five million payments, too")
    parser.add_argument("--quick", action="store_true", help="prove that it runs: seconds, and figures worth nothing")
    parser.add_argument("--out", type=Path, help="where the report is written")
    wanted = parser.parse_args(words)
    if wanted.quick:
        given = {word.partition("=")[0] for word in words}
        vars(wanted).update({name: value for name, value in _QUICK.items() if f"--{name}" not in given})
    if wanted.out is None and not wanted.quick and wanted.only == list(WORKS):
        wanted.out = REPORT
    return wanted


def report(sections: Sequence[Section], words: Sequence[str], minutes: float) -> str:
    """Return the whole report as Markdown."""
    ours = ", ".join(f"{name} {version(name)}" for name in _OURS)
    tool = subprocess.run([wrk.find(), "-v"], check=False, capture_output=True, text=True).stdout.split("\n")[0]
    server = subprocess.run([binaries() / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    head = [
        "# Performance",
        "",
        _HOW,
        "",
        f"- Command: `python -m bench.performance {' '.join(words)}`".rstrip("` ") + "`",
        f"- When: {datetime.now(UTC):%Y-%m-%d}, {minutes:.0f} minutes",
        f"- Machine: {machine()}",
        f"- Versions: Python {platform.python_version()}, {ours}; {server.strip()}; {' '.join(tool.split()[:2])}",
        f"- Peers: {versions()}",
        _POSTGRES,
        "",
    ]
    return "\n".join(head) + "\n" + "\n".join(section.text() for section in sections)


def main() -> None:
    """Measure what is wanted, print it, and write the report."""
    words = sys.argv[1:]
    wanted, began = arguments(words), time.monotonic()
    sections: list[Section] = []
    wrk.find()
    with tempfile.TemporaryDirectory(prefix="kpayd-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with stored(folder) as store:
            print(f"filling a table with {wanted.rows:,} payments", flush=True)
            twin = bool({"peers", "reads"} & set(wanted.only))
            run = Run(folder, store, store.filled("bench", wanted.rows, twin=twin), wanted)
            for work, measure in WORKS.items():
                if work in wanted.only:
                    print(f"{work}:", flush=True)
                    found = measure(run)
                    sections += found
                    print("\n" + "\n".join(section.text() for section in found), flush=True)
                    store.tidy("bench")
    text = report(sections, words, (time.monotonic() - began) / 60)
    if wanted.out is not None:
        wanted.out.write_text(text)
        print(f"written to {wanted.out}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
