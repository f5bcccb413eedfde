"""Growth: what a postback, a read and a claim cost with few payments in the table, and with many."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import text

from app.main import open_context
from bench import reading
from bench.figures import Section, spread, two, whole
from bench.postbacks import MOST
from bench.servers import Fresh, Loaded, Postbacks, as_service, settings_of
from bench.store import LEAST_PENDING, REFID, Payments, Store
from tests.support import query

CONNECTIONS = 32
CLAIM = 16
"""How many payments one claim leases: what `KPAYD_CHECK_CONCURRENCY` is by itself."""
CLAIMS = 200

WORKS = ("a postback for one of the newest", "a read", f"{CLAIM} due payments claimed, and put off")
_HEAD = ("what", "payments in the table", "CPU in all, µs each", "of PostgreSQL alone", "a second", "CPU of the least")

# What an answer does to the row, and no more: leased rows that nobody answers would pile up before the next claim.
_ANSWERED = text(
    "UPDATE payments SET leased_until = NULL, next_check_at = now() + interval '1 day' "
    "WHERE refid = ANY(CAST(:refids AS text[]))"
)

Cost = tuple[float, float, float]
"""CPU of both, of PostgreSQL alone (microseconds), and how many a second."""


async def _claims(url: str, store: Store) -> Cost:
    async with open_context(settings_of(url, "http://127.0.0.1:9/")) as parts:

        async def claim() -> int:
            claims = await parts.reconciler._lease(CLAIM)  # noqa: SLF001 - the very statements, without the call
            async with parts.database.autocommit() as connection:
                await connection.execute(_ANSWERED, {"refids": [each.refid for each in claims]})
            return len(claims)

        await claim()
        began, own, postgres = time.perf_counter(), time.process_time(), store.cpu()
        leased = [await claim() for _ in range(CLAIMS)]
        seconds, own, postgres = time.perf_counter() - began, time.process_time() - own, store.cpu() - postgres
    if set(leased) != {CLAIM}:
        raise AssertionError(f"claims came back with {sorted(set(leased))} payments")
    return (own + postgres) / CLAIMS * 1e6, postgres / CLAIMS * 1e6, CLAIMS / seconds


def _due(of: Payments) -> None:
    """Make the newest payments due, none of them leased."""
    numbers = f"generate_series({of.rows - LEAST_PENDING + 1}::bigint, {of.rows})"
    query(
        of.url,
        "UPDATE payments SET next_check_at = now() - interval '1 minute', leased_until = NULL "  # noqa: S608 - our own words
        f"WHERE refid = ANY(ARRAY(SELECT {REFID.format(n='n')} FROM {numbers} AS n))",
    )
    query(of.url, "VACUUM payments")


def _loaded(load: Loaded, seconds: float) -> Cost:
    sample = load.measure(seconds, CONNECTIONS)
    return (sample.server_each or 0.0) + sample.postgres_each, sample.postgres_each, sample.rate


def measure(folder: Path, store: Store, sizes: Sequence[Payments], *, seconds: float, rounds: int) -> Section:
    """Measure all sizes in turn; the postbacks are for the newest few thousand payments of each."""
    found: dict[tuple[str, int], list[Cost]] = {(work, of.rows): [] for work in WORKS for of in sizes}
    with ExitStack() as stack:
        loads = {}
        for of in sizes:
            server, service = stack.enter_context(as_service(folder, of.url))
            recent = Payments(of.url, of.rows, recent=LEAST_PENDING)
            recent.sent = of.sent
            wanted = Fresh(reading.Reads("/v1/payments/", of.rows, service.key))
            loads[of.rows] = (
                Loaded(folder, store, server, Postbacks(recent), MOST),
                Loaded(folder, store, server, wanted, reading.MOST),
            )
        for number in range(rounds + 1):
            for of in sizes:
                costs = [_loaded(load, seconds if number else 1) for load in loads[of.rows]]
                _due(of)
                costs.append(asyncio.run(_claims(of.url, store)))
                if number:  # the first one only warms up
                    for work, cost in zip(WORKS, costs, strict=True):
                        found[work, of.rows].append(cost)
                        print(f"  {work:<40}{of.rows:>10,} payments {cost[0]:>8,.0f} µs", flush=True)
    section = Section(
        "Growth", _HEAD, notes=[f"{CONNECTIONS} connections; the last column is CPU in all by that of the same round."]
    )
    for (work, rows), costs in found.items():
        totals, postgres, rates = (list(column) for column in zip(*costs, strict=True))
        least = [cost[0] for cost in found[work, sizes[0].rows]]
        times = [total / small for total, small in zip(totals, least, strict=True)]
        section.rows.append(
            [
                work,
                whole(rows),
                spread(totals, whole),
                spread(postgres, whole),
                spread(rates, whole),
                spread(times, two),
            ]
        )
    return section
