"""Notifications: how many a second one process delivers, and how long after the commit they arrive.

    .venv/bin/python -m bench.notify --events 3000 --receivers 1 10 100

A backlog of events is put into the outbox at once and the receivers, which answer 200 at once, count; then payments
are played through the whole loop at a gentle pace, and the delay is from an event's timestamp, which is taken just
before its commit, to the arrival of its notification. Everything shares the machine.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx2

from app.clients import Clients
from app.database import async_url, open_database
from app.dev.postgres import running
from app.models import payments
from app.schema import migrate
from bench.kernel import tree_cpu
from tests.support import Service, payment, run_service, run_simulator

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receivers:
    """All receivers in one: what arrived, and when."""

    def __init__(self) -> None:
        self.arrived: list[tuple[float, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every POST of one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.arrived.append((time.time(), body))
                writer.write(_ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receivers, str]]:
    """Yield receivers and their address."""
    receivers = Receivers()
    server = await asyncio.start_server(receivers.serve, "127.0.0.1", 0)
    async with server:
        yield receivers, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def backlog(database_url: str, template: str, clients: Sequence[str], events: int) -> None:
    """Put `events` of as many payments into the outbox, in one commit, and ring."""
    columns = [column.name for column in payments.c if column.name not in ("refid", "client")]
    names = ", ".join(columns)
    connection = await asyncpg.connect(async_url(database_url).replace("+asyncpg", ""))
    try:
        async with connection.transaction():
            await connection.execute(
                f"INSERT INTO payments (refid, client, {names}) "  # noqa: S608 - our own columns
                f"SELECT 'b-' || gen_random_uuid(), ($2::text[])[1 + n % cardinality($2::text[])], {names} "
                "FROM payments, generate_series(0, $3 - 1) AS n WHERE refid = $1",
                template,
                list(clients),
                events,
            )
            await connection.execute(
                "INSERT INTO events (refid, seq, type, source, status, state) "
                "SELECT p.refid, 9, 'payment.succeeded', 'checkstatus', 'succeeded', e.state "
                "FROM payments AS p, events AS e WHERE p.refid LIKE 'b-%' AND e.refid = $1 AND e.seq = 1 "
                "AND NOT EXISTS (SELECT FROM events AS x WHERE x.refid = p.refid)",
                template,
            )
        await connection.execute("SELECT pg_notify('kpayd', 'p:-')")
    finally:
        await connection.close()


async def measure(service: Service, receivers: Receivers, address: str, count: int, events: int) -> str:
    """Return the line of the table for `count` receivers."""
    names = [f"bench-{count}-{number}" for number in range(count)]
    async with open_database(service.database_url, pool=1) as database:
        clients = Clients(database)
        keys = [(await clients.add(name, webhook_url=f"{address}/{name}")).key for name in names]
    headers = {"Authorization": f"Bearer {keys[0]}"}
    async with httpx2.AsyncClient(base_url=service.url, headers=headers, trust_env=False, timeout=60) as http:
        template = (await http.post("/v1/payments", json=payment(), params={"wait": 20})).json()["refid"]
        await asyncio.sleep(2)
        receivers.arrived.clear()
        pid = service.process.child.pid
        before = tree_cpu(pid)
        await backlog(service.database_url, template, names, events)
        while len(receivers.arrived) < events:  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.02)
        used = (tree_cpu(pid) - before) / events * 1000
        times = [at for at, _ in receivers.arrived]
        rate = events / (max(times) - min(times))
        receivers.arrived.clear()
        for _ in range(200):
            await http.post("/v1/payments", json=payment())
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
    delays = sorted(
        at - datetime.fromisoformat(json.loads(body)["timestamp"]).astimezone(UTC).timestamp()
        for at, body in receivers.arrived
    )
    p99 = delays[int(len(delays) * 0.99)]
    middle = statistics.median(delays)
    return f"| {count} | {rate:.0f} | {used:.2f} | {middle * 1000:.0f} | {p99 * 1000:.0f} |"


async def measure_all(service: Service, counts: Sequence[int], events: int) -> None:
    """Measure for each number of receivers and print the table."""
    print("| receivers | notifications/s | CPU of the service, ms each | delay, median ms | delay, p99 ms |")
    print("|---|---|---|---|---|")
    async with receiving() as (receivers, address):
        for count in counts:
            print(await measure(service, receivers, address, count, events), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=3000)
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 10, 100])
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with running(folder / "postgres") as server, run_simulator(folder, payer_delay=0.05) as simulator:
            migrate(server.url)
            settings = {"WEBHOOK_HOSTS": "127.0.0.1"}
            with run_service(folder, server.url, simulator, settings) as service:
                asyncio.run(measure_all(service, wanted.receivers, wanted.events))


if __name__ == "__main__":
    main()
