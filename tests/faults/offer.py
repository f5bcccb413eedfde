"""Offers load at a fixed rate, whatever the answers: what callers do who know nothing of each other.

Bare sockets on one event loop, since a whole HTTP client would cost more than the service that it loads.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support import spoken


@dataclass
class Told:
    """What came of the calls of one kind."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    def percentile(self, percent: float) -> float:
        """Return how long the slowest but the last `percent` took."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def get(path: str, key: str) -> bytes:
    """Return a request for `path`, byte for byte."""
    return spoken("GET", path, connection="keep-alive", authorization=f"Bearer {key}")


def post(path: str, body: bytes) -> bytes:
    """Return a request that sends `body`, byte for byte."""
    return spoken("POST", path, body, connection="keep-alive", content_type="application/json")


class Line:
    """One connection that is used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send one request and return status and head of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        if b"connection: close" in lower:
            self.hang_up()
        return int(head[9:12]), lower

    def hang_up(self) -> None:
        """Let go of the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def offer(
    port: int, calls: Sequence[tuple[float, Callable[[], bytes]]], *, seconds: float, patience: float = 10
) -> list[Told]:
    """Make calls of several kinds, each at its own rate a second, and return what came of each kind."""
    free: list[Line] = []
    told = [Told() for _ in calls]

    async def ask(kind: int, request: bytes) -> None:
        line = free.pop() if free else Line(port)
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                status, head = await line.ask(request)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            line.hang_up()
            told[kind].statuses[type(exc).__name__] += 1
        else:
            told[kind].statuses[status] += 1
            told[kind].seconds.append(time.monotonic() - began)
            told[kind].without_retry_after += status == 503 and b"retry-after: " not in head
            free.append(line)

    async def drive(kind: int, rate: float, make: Callable[[], bytes]) -> None:
        began, count = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (passed := time.monotonic() - began) < seconds:
                while count < passed * rate:
                    group.create_task(ask(kind, make()))
                    count += 1
                await asyncio.sleep(0.005)

    try:
        await asyncio.gather(*(drive(kind, rate, make) for kind, (rate, make) in enumerate(calls)))
    finally:
        for line in free:
            with suppress(OSError):
                line.hang_up()
    return told
