"""The full loop: start, postback, confirmed, against a simulator whose payers pay at once.

    .venv/bin/python -m bench.loop --payments 1500 --at-once 32

Prints payments a second, the service's CPU per payment as the kernel counts it, its memory, and how long it takes to
start. Service, simulator, PostgreSQL and load share the machine.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import httpx2

from app.dev.laptop import free_port
from app.dev.postgres import running
from app.schema import migrate
from tests.support import Service, answers, payment, run_service, run_simulator

TICKS = 100  # the kernel's clock ticks a second


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, its system calls included."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / TICKS


def megabytes(pid: int, name: str) -> float:
    """Return a size from the kernel's status of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


async def play(service: Service, payments: int, at_once: int) -> tuple[float, float]:
    """Start payments and wait until all are final; return the seconds until all were started, and until all ended."""
    limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx2.AsyncClient(
        base_url=service.url, headers=headers, trust_env=False, timeout=60, limits=limits
    ) as http:
        turn = asyncio.Semaphore(at_once)

        async def start() -> None:
            async with turn:
                (await http.post("/v1/payments", json=payment())).raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(start() for _ in range(payments)))
        started = time.perf_counter() - began
        while (await http.get("/v1/payments", params={"status": "pending", "limit": 1})).json()["items"]:  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.05)
        return started, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--payments", type=int, default=1500)
    parser.add_argument("--at-once", type=int, default=32)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with running(folder / "postgres") as server, run_simulator(folder, payer_delay=0.01) as simulator:
            migrate(server.url)
            began, port = time.perf_counter(), free_port()
            with run_service(folder, server.url, simulator, {"CHECK_CONCURRENCY": "32"}, port=port) as service:
                answers(service.process, f"{service.url}/readyz")
                pid = service.process.child.pid
                print(f"start to ready   {time.perf_counter() - began:.1f} s")
                print(f"memory when idle {megabytes(pid, 'VmRSS'):.0f} MB")
                asyncio.run(play(service, 200, 8))
                before = cpu_seconds(pid)
                started, ended = asyncio.run(play(service, wanted.payments, wanted.at_once))
                used = (cpu_seconds(pid) - before) / wanted.payments * 1000
                print(f"started          {wanted.payments / started:.0f} payments/s, {wanted.at_once} at once")
                print(f"through the loop {wanted.payments / ended:.0f} payments/s")
                print(f"CPU of service   {used:.1f} ms a payment")
                print(f"memory at most   {megabytes(pid, 'VmHWM'):.0f} MB")


if __name__ == "__main__":
    main()
