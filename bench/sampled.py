"""Runs kpayd and counts whose its CPU is: whenever it has used some more, the part of the way that it is at.

    .venv/bin/python -m bench.sampled serve --no-worker --port 8000

The kernel's timer of the process's CPU time sends a signal, and Python calls its handler. `/metrics` tells what was
counted, and how long postbacks were in the inbox, and in the statement of their batch.
"""

import signal
import time
from collections import Counter as Counts
from collections.abc import Iterator, Sized
from types import FrameType

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app.cli import main as kpayd
from app.inbox import Inbox
from bench import stacks

EVERY = 0.005
"""Seconds of CPU between two looks; where the kernel's clock is coarser, as many as that has."""

IN_INBOX = Counter("bench_in_inbox_seconds", "Seconds that postbacks were in the inbox, all told")
IN_STATEMENT = Counter("bench_in_statement_seconds", "Seconds that postbacks were in their batch's statement, all told")


class Looks(Collector):
    """What was seen. Not a `Counter` of the library's: the signal may come while one holds its lock."""

    def __init__(self) -> None:
        self._seen = Counts(dict.fromkeys(stacks.PARTS, 0))

    def look(self, _number: int, frame: FrameType | None) -> None:
        """Count whose moment this is."""
        self._seen[stacks.part_of(frame)] += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Tell what was counted."""
        family = CounterMetricFamily("bench_looks", "Moments of CPU by the part they belong to", labels=["part"])
        for part, count in self._seen.items():
            family.add_metric([part], count)
        yield family


def _time(name: str, total: Counter) -> None:
    """Let a method of the inbox add its seconds to `total`, once for each postback that waits for it."""
    method = getattr(Inbox, name)

    async def timed(inbox: Inbox, given: object) -> object:
        began = time.perf_counter()
        try:
            return await method(inbox, given)
        finally:
            total.inc((time.perf_counter() - began) * (len(given) if isinstance(given, Sized) else 1))

    setattr(Inbox, name, timed)


def main() -> None:
    """Run kpayd."""
    _time("put", IN_INBOX)
    _time("_store", IN_STATEMENT)
    looks = Looks()
    REGISTRY.register(looks)
    signal.signal(signal.SIGPROF, looks.look)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    kpayd()


if __name__ == "__main__":
    main()
