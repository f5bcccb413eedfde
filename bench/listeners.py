"""Who listens: what an idle stream and a waiting call cost one process, and how soon they are told.

    .venv/bin/python -m bench.listeners --streams 2000 --waits 2000

Memory is the service's own, as the kernel counts it, in four steps. A delay is from an event's timestamp, which is
taken just before its commit, until its reader has it. Services, simulator, PostgreSQL and readers share the machine.
"""

import argparse
import asyncio
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from app.dev.postgres import running
from app.schema import migrate
from bench.kernel import peak_megabytes, tree_cpu, tree_megabytes
from tests.support import Service, Simulator, eventually, metric, run_service, run_simulator, spoken

STEPS = 4
SAME = 100
"""How many wait for one payment."""
BURST = 20
"""How many come at once: more might be turned away on a machine that has other things to do."""
PAYMENTS = 200
IDLE_SECONDS = 15.0
"""As long as a stream's heartbeat, so that each has one."""

NEVER_ACTS = "250780000005"
CALM = {"CHECK_SCHEDULE": "3600"}

Open = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Opener = Callable[[int], Awaitable[Open]]


async def ask(service: Service, path: str, key: str) -> Open:
    """Send one GET."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(spoken("GET", path, authorization=f"Bearer {key}"))
    return reader, writer


async def counted(service: Service, gauge: str, count: int) -> None:
    """Return when a service counts so many, or none where `count` is 0."""
    await asyncio.to_thread(
        eventually, lambda: (now := metric(service, gauge)) >= count and bool(now) == bool(count), seconds=60
    )


async def fill(service: Service, count: int, gauge: str, opener: Opener) -> tuple[list[Open], list[float]]:
    """Open `count` of them in steps; return them and the kB that one took in each step."""
    opened: list[Open] = []
    each: list[float] = []
    for _ in range(STEPS):
        before, among = tree_megabytes(service.process.child.pid), len(opened)
        while len(opened) < among + count // STEPS:
            opened += await asyncio.gather(*(opener(len(opened) + n) for n in range(BURST)))
            await counted(service, gauge, len(opened))
        each.append((tree_megabytes(service.process.child.pid) - before) * 1000 / (len(opened) - among))
    return opened, each


async def idle_cpu(service: Service) -> float:
    """Return how much of one core the service takes while nothing happens, in per cent."""
    before = tree_cpu(service.process.child.pid)
    await asyncio.sleep(IDLE_SECONDS)
    return (tree_cpu(service.process.child.pid) - before) / IDLE_SECONDS * 100


def line(name: str, figures: str) -> None:
    """Print one line of the table."""
    print(f"{name:<44}{figures}", flush=True)


def told(name: str, delays: Sequence[float]) -> None:
    """Print median and 99th percentile of some delays, given in seconds."""
    ordered = sorted(delays)
    p99 = ordered[int(len(ordered) * 0.99)]
    line(name, f"{statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms ({len(ordered)} of them)")


def moment(event: dict[str, str]) -> float:
    """Return when an event happened."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


async def stream_delays(reads: Service, does: Service) -> list[float]:
    """Listen at one service while payments go on at another, or the same; return the delay of each event."""
    reader, writer = await ask(reads, "/v1/events/stream", reads.key)
    delays: list[float] = []
    began = time.time()

    async def listen() -> None:
        while len(delays) < 3 * PAYMENTS:
            text = await reader.readline()
            if text.startswith(b"data: "):
                now, event = time.time(), json.loads(text[6:])
                if moment(event) >= began:
                    delays.append(now - moment(event))

    listening = asyncio.create_task(listen())
    for _ in range(PAYMENTS):
        refid = (await asyncio.to_thread(does.start))["refid"]
        await asyncio.to_thread(does.read, refid, wait=10)
    async with asyncio.timeout(30):
        await listening
    writer.close()
    return delays


async def wait_delays(does: Service, simulator: Simulator, refids: Sequence[str], waits: list[Open]) -> list[float]:
    """End the payments one after the other at `does`; return how long after its end each call was answered."""

    async def answered(reader: asyncio.StreamReader) -> tuple[str, float]:
        answer = await reader.read()
        now = time.time()
        payment = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert payment["status"] == "succeeded"  # noqa: S101 - else nothing was measured
        return payment["refid"], now

    arrived: list[tuple[str, float]] = []
    for number, refid in enumerate(refids):
        of_this = waits[number * SAME : (number + 1) * SAME]
        answers = [asyncio.create_task(answered(reader)) for reader, _ in of_this]
        await asyncio.to_thread(simulator.settle, refid, "01", postback=False)
        await asyncio.to_thread(lambda name: does.http.post(f"/v1/payments/{name}/check").raise_for_status(), refid)
        arrived += await asyncio.gather(*answers)
    ends = {}
    for refid in refids:
        events = await asyncio.to_thread(does.events, refid)
        (end,) = (event for event in events if event["type"] == "payment.succeeded")
        ends[refid] = datetime.fromisoformat(end["created_at"]).timestamp()
    return [at - ends[refid] for refid, at in arrived]


async def measure(one: Service, other: Service, idle: str, simulator: Simulator, wanted: argparse.Namespace) -> None:
    """Measure and print; `idle` is the key of a client to whom nothing happens."""
    pid = one.process.child.pid
    for service in (one, other):  # what the first ones load, nobody else pays for
        await asyncio.to_thread(service.read, (await asyncio.to_thread(service.start))["refid"], wait=10)
    warm = [await ask(one, "/v1/events/stream", idle) for _ in range(50)]
    await counted(one, "kpayd_streams", len(warm))
    line("memory with nobody there", f"{tree_megabytes(pid):.0f} MB")
    line("CPU with nobody there", f"{await idle_cpu(one):.1f} % of one core")

    opened, each = await fill(one, wanted.streams, "kpayd_streams", lambda _: ask(one, "/v1/events/stream", idle))
    line("memory per idle stream", f"{statistics.median(each):.1f} kB ({', '.join(f'{kb:.1f}' for kb in each)})")
    line(f"CPU with {len(opened)} idle streams", f"{await idle_cpu(one):.1f} % of one core, heartbeats included")
    told("commit to stream, the same process", await stream_delays(one, one))
    told("commit to stream, another process", await stream_delays(one, other))
    for _, writer in (*warm, *opened):
        writer.close()
    await counted(one, "kpayd_streams", 0)

    # At the other service: this one has memory left over from the streams.
    refids = [(await asyncio.to_thread(one.start, NEVER_ACTS))["refid"] for _ in range(max(1, wanted.waits // SAME))]
    paths = [f"/v1/payments/{refid}?wait=60" for refid in refids]
    opened, each = await fill(
        other, wanted.waits, "kpayd_waits", lambda n: ask(other, paths[n // SAME % len(paths)], other.key)
    )
    line("memory per waiting call", f"{statistics.median(each):.1f} kB ({', '.join(f'{kb:.1f}' for kb in each)})")
    line(f"CPU with {len(opened)} waiting calls", f"{await idle_cpu(other):.1f} % of one core")
    told(f"commit to answer, another process, {SAME} each", await wait_delays(one, simulator, refids, opened))
    for _, writer in opened:
        writer.close()
    line("memory at most", f"{peak_megabytes(pid):.0f} MB")


def main() -> None:
    """Run everything that is needed and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--waits", type=int, default=2_000)
    wanted = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        server = stack.enter_context(running(folder / "postgres"))
        simulator = stack.enter_context(run_simulator(folder, payer_delay=0.01))
        migrate(server.url)
        one = stack.enter_context(run_service(folder, server.url, simulator, CALM))
        other = stack.enter_context(run_service(folder, server.url, simulator, CALM))
        asyncio.run(measure(one, other, one.new_key("idle"), simulator, wanted))


if __name__ == "__main__":
    main()
