"""Memory of one process: idle, under load, with a thousand streams, and whether it grows over a soak."""

import asyncio
import resource
import time
from pathlib import Path

from bench.figures import Section, whole
from bench.listeners import BURST, Open, ask, counted
from bench.postbacks import MOST
from bench.reading import Reads
from bench.servers import Fresh, Loaded, Postbacks, Server, as_service
from bench.store import Payments, Store
from tests.support import Service

STREAMS = 1_000
CONNECTIONS = 32
_PIECE = 5.0
"""Seconds of load between two looks at the memory."""
_SETTLED = 4
"""After which share of the soak (one in so many) growth is counted from: caches have filled by then."""


async def _with_streams(server: Server, service: Service) -> float:
    idle = await asyncio.to_thread(service.new_key, "idle")  # of a client to whom nothing happens
    opened: list[Open] = []
    while len(opened) < STREAMS:
        opened += await asyncio.gather(*(ask(service, "/v1/events/stream", idle) for _ in range(BURST)))
        await counted(service, "kpayd_streams", len(opened))
    found = server.megabytes()
    for _, writer in opened:
        writer.close()
    await counted(service, "kpayd_streams", 0)
    return found


def measure(folder: Path, store: Store, of: Payments, *, seconds: float, soak: float) -> Section:
    """Measure one process, which is loaded by postbacks and reads in turn."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with as_service(folder, of.url) as (server, service):
        loads = (
            Loaded(folder, store, server, Postbacks(of), MOST),
            Loaded(folder, store, server, Fresh(Reads("/v1/payments/", of.rows, service.key)), MOST),
        )
        section = Section("Memory of one process", ("when", "MB"))
        section.rows.append(["idle", whole(server.megabytes())])
        for load in loads:
            load.measure(seconds, CONNECTIONS)
        section.rows.append([f"after {CONNECTIONS} connections of postbacks, then reads", whole(server.megabytes())])
        time.sleep(1)  # under pressure streams are turned away
        section.rows.append([f"with {STREAMS:,} streams", whole(asyncio.run(_with_streams(server, service)))])
        if soak:
            seen = _soaked(server, loads, soak)
            settled = seen[len(seen) // _SETTLED]
            section.rows.append([f"a soak of {soak:.0f} s: after a quarter of it", whole(settled)])
            section.rows.append(["at its end", whole(seen[-1])])
            section.rows.append(["most", whole(max(seen))])
    return section


def _soaked(server: Server, loads: tuple[Loaded, ...], soak: float) -> list[float]:
    """Load for so long; return the memory after each piece of it."""
    end, seen = time.monotonic() + soak, [server.megabytes()]
    while time.monotonic() < end:
        for load in loads:
            load.measure(min(_PIECE, soak / 4), CONNECTIONS)
        seen.append(server.megabytes())
        print(f"  {seen[-1]:.0f} MB", flush=True)
    return seen
