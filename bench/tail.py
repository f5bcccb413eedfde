"""How late the slowest postbacks are: p99 beside p50 at half of what one process can take.

wrk sends the next request when the last one is answered, and so never finds out what waiting would have cost. Here
requests leave by the clock, on whichever connection is free, and a latency counts from when one should have left.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from bench.figures import Refused, Section, spread, two, whole
from bench.postbacks import MOST
from bench.servers import Loaded, Postbacks, served
from bench.store import Payments, Store

CONNECTIONS = 64
SATURATED_BY = 32
_PATIENCE = 30.0
_HEAD = ("postbacks a second", "of saturation", "p50, ms", "p99, ms", "p99 by p50")
Latencies = tuple[float, float, float]
"""Rate, p50 and p99 (milliseconds)."""


class _Connection(asyncio.Protocol):
    """One connection: sends a request, and is free again when its answer has come."""

    def __init__(self, free: "deque[_Connection]", latencies: list[float], refused: list[bytes]) -> None:
        self._free = free
        self._latencies = latencies
        self._refused = refused
        self._due = 0.0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but the type
        self._free.append(self)

    def send(self, request: bytes, due: float) -> None:
        """Send a request that should leave, or should have left, at `due`."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, ended, body = self._answer.partition(b"\r\n\r\n")
        if not ended or len(body) < int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 2"):
            self._refused.append(head)
        self._latencies.append(time.perf_counter() - self._due)
        self._answer = b""
        self._free.append(self)


async def offered(port: int, requests: Sequence[bytes], rate: float) -> list[float]:
    """Send all requests at `rate` a second; return the seconds that each took, counted from when it was due.

    Raises `Refused` where one is not answered 2xx.
    """
    free: deque[_Connection] = deque()
    latencies: list[float] = []
    refused: list[bytes] = []
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Connection(free, latencies, refused), "127.0.0.1", port)
    began, sent = time.perf_counter(), 0
    while len(latencies) < len(requests):
        now = time.perf_counter()
        while sent < len(requests) and free and (due := began + sent / rate) <= now:
            free.popleft().send(requests[sent], due)
            sent += 1
        if refused or now > began + len(requests) / rate + _PATIENCE:
            raise Refused(f"{len(latencies)} of {len(requests)} requests were answered 2xx; {refused[:1]}")
        await asyncio.sleep(0.0005)
    return latencies


def measure(folder: Path, store: Store, of: Payments, *, seconds: float, rounds: int) -> Section:
    """Measure saturation and half of it in turn."""
    found: list[Latencies] = []
    wanted = Postbacks(of)
    with served(folder, of.url) as server:
        load = Loaded(folder, store, server, wanted, MOST)
        load.measure(1, SATURATED_BY)
        for _ in range(rounds):
            rate = load.measure(seconds, SATURATED_BY).rate / 2
            requests = list(wanted.make(int(rate * seconds)))
            wanted.were_sent(len(requests))
            ordered = sorted(uvloop.run(offered(server.port, requests, rate)))
            p50, p99 = ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000
            found.append((rate, p50, p99))
            print(f"  {rate:,.0f} a second: p50 {p50:.1f} ms, p99 {p99:.1f} ms", flush=True)
    section = Section(
        "How late the slowest postbacks are, at half of saturation",
        _HEAD,
        notes=[
            (
                f"Saturation is what wrk reaches with {SATURATED_BY} connections in the same round. Half of that is "
                "offered by the clock (bench/tail.py, not wrk), and a latency counts from when a request should have "
                "left. The generator, in Python, shares the cores."
            ),
        ],
    )
    rates, p50s, p99s = (list(column) for column in zip(*found, strict=True))
    times = [slow / middle for slow, middle in zip(p99s, p50s, strict=True)]
    section.rows.append([spread(rates, whole), "0.50", spread(p50s, two), spread(p99s, two), spread(times, two)])
    return section
