"""Runs kpayd and writes down what it is doing whenever it has used some more CPU.

    .venv/bin/python -m bench.sampled STACKS serve --no-worker --port 8000

The kernel's timer of the process's CPU time sends a signal, and faulthandler writes the Python stack to the file STACKS
from the signal's handler: one in Python would run later, when the C code that used the CPU has returned to somebody
else. `/metrics` tells besides how long postbacks were in the inbox, and in the statement of their batch.
"""

import faulthandler
import signal
import sys
import time
from collections.abc import Sized
from pathlib import Path

from prometheus_client import Counter

from app.cli import main as kpayd
from app.inbox import Inbox

EVERY = 0.005
"""Seconds of CPU between two looks; where the kernel's clock is coarser, as many as that has."""

IN_INBOX = Counter("bench_in_inbox_seconds", "Seconds that postbacks were in the inbox, all told")
IN_STATEMENT = Counter("bench_in_statement_seconds", "Seconds that postbacks were in their batch's statement, all told")


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


def main(stacks: Path, words: list[str]) -> None:
    """Run kpayd with `words`."""
    _time("put", IN_INBOX)
    _time("_store", IN_STATEMENT)
    with stacks.open("wb") as file:
        faulthandler.register(signal.SIGPROF, file, all_threads=False)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
        sys.argv = ["kpayd", *words]
        kpayd()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
