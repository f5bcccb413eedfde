"""The guard against a real loss of speed: kpayd's share of what PostgreSQL itself does, beside what it was.

    .venv/bin/python -m bench.guard
    .venv/bin/python -m bench.guard --keep

Half a minute. Only ratios within one run are compared with those in bench/guard.json, since a slow machine is slow for
both. The work that a second of CPU buys hardly moves, however busy the machine is: half of it is a loss. Rates swing by
a factor of two when others take the cores, so a quarter is (what waits costs no CPU). Only what shows a second time
fails, with exit code 1. `--keep` writes what was found as the new measure, to be done on a quiet machine and looked at.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench import pgbench
from bench.figures import BenchError, ratios
from bench.postbacks import MOST
from bench.reading import Reads
from bench.servers import Contender, Fresh, Loaded, Postbacks, as_service, interleaved
from bench.store import stored

KEPT = Path(__file__).with_name("guard.json")
ROWS = 20_000
ROUNDS = 3
SECONDS = 2.0
CONNECTIONS = 32
LOSS = 2.0
LOSS_OF_RATE = 4.0

_OURS, _THEIRS = "kpayd", "pgbench"
_BY_CPU = "a CPU second"


def found(folder: Path) -> dict[str, float]:
    """Return the ratios of each work, the best round's: what disturbs a round makes it worse, and seldom better."""
    with ExitStack() as stack:
        store = stack.enter_context(stored(folder))
        of = store.filled("guard", ROWS)
        server, service = stack.enter_context(as_service(folder, of.url))
        reads = Fresh(Reads("/v1/payments/", of.rows, service.key))
        works: dict[str, tuple[Contender, Contender]] = {
            "postbacks": (Loaded(folder, store, server, Postbacks(of), MOST), pgbench.postbacks(folder, store, of)),
            "reads": (Loaded(folder, store, server, reads, MOST), pgbench.reads(folder, store, of)),
        }
        best = {}
        for work, (ours, theirs) in works.items():
            pair = {_OURS: ours, _THEIRS: theirs}
            runs = interleaved(pair, seconds=SECONDS, rounds=ROUNDS, connections=CONNECTIONS)
            cpu = [
                other.postgres_each / ((one.server_each or 0.0) + one.postgres_each)
                for one, other in zip(runs[_OURS], runs[_THEIRS], strict=True)
            ]
            for name, shares in ((work, ratios(runs, _OURS, _THEIRS)), (f"{work} {_BY_CPU}", cpu)):
                best[name] = max(shares)
                print(f"{name}: {statistics.median(shares):.3f} of pgbench, at best {best[name]:.3f}", flush=True)
        return best


def _measured() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kpayd-guard-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        return found(folder)


def _lost(kept: Mapping[str, float], best: Mapping[str, float]) -> list[str]:
    least = {work: share / (LOSS if work.endswith(_BY_CPU) else LOSS_OF_RATE) for work, share in kept.items()}
    return [f"{work}: {best[work]:.3f}, kept {kept[work]:.3f}" for work in kept if best[work] < least[work]]


def main() -> None:
    """Compare, or keep; exit code 1 on a loss that shows twice."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name} anew")
    wanted = parser.parse_args()
    best = _measured()
    if wanted.keep:
        KEPT.write_text(json.dumps({work: round(share, 3) for work, share in best.items()}, indent=2) + "\n")
        return
    kept: dict[str, float] = json.loads(KEPT.read_text())
    if lost := _lost(kept, best):
        print(f"once again, since this is a loss: {'; '.join(lost)}", flush=True)
        again = _measured()
        lost = _lost(kept, {work: max(share, again[work]) for work, share in best.items()})
    for each in lost:
        print(f"a loss: {each}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    try:
        main()
    except BenchError as exc:
        sys.exit(f"bench: {exc}")
