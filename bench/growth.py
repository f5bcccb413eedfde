"""Growth: what a postback, a read and a claim cost with few payments and with many, and what these take on disk."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.main import open_context
from bench import reading, relations
from bench.figures import Sample, Section, one, spread, two, whole
from bench.postbacks import MOST
from bench.servers import Fresh, Loaded, Postbacks, as_service, settings_of
from bench.store import LEAST_PENDING, REFID, Payments, Store
from tests.support import query

CONNECTIONS = 32
CLAIM = 16
"""How many payments one claim leases: what `KPAYD_CHECK_CONCURRENCY` is by itself."""
CLAIMS = 200

WORKS = ("a postback for one of the newest", "a read", f"{CLAIM} due payments claimed, and put off")
_LITTLE = 64 * 1024
_WATCHED = ("payments", "events", "deliveries")
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


@dataclass(frozen=True, slots=True)
class Grown:
    """What a database took when it was filled, and before and after a measurement with so many postbacks."""

    rows: int
    postbacks: int
    filled: Mapping[str, int]
    sizes: Mapping[str, int]
    updates: relations.Updates
    sizes_after: Mapping[str, int]
    updates_after: relations.Updates


def _due(of: Payments) -> None:
    """Make the newest payments due, none of them leased."""
    numbers = f"generate_series({of.rows - LEAST_PENDING + 1}::bigint, {of.rows})"
    query(
        of.url,
        # Each at a time of its own, as the service makes them due.
        f"UPDATE payments SET next_check_at = now() + (n - {of.rows}) * interval '1 ms', leased_until = NULL "  # noqa: S608 - our own words
        f"FROM {numbers} AS n WHERE refid = {REFID.format(n='n')}",
    )
    query(of.url, "VACUUM payments")


def _cost(sample: Sample) -> Cost:
    return (sample.server_each or 0.0) + sample.postgres_each, sample.postgres_each, sample.rate


def measure(folder: Path, store: Store, sizes: Sequence[Payments], *, seconds: float, rounds: int) -> Sequence[Section]:
    """Measure all sizes in turn; the postbacks are for the newest few thousand payments of each."""
    before = [(relations.sizes(of.url), relations.updates(of.url)) for of in sizes]
    postbacks: Counter[int] = Counter()
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
                samples = [load.measure(seconds if number else 1, CONNECTIONS) for load in loads[of.rows]]
                postbacks[of.rows] += samples[0].requests
                costs = [_cost(sample) for sample in samples]
                _due(of)
                costs.append(asyncio.run(_claims(of.url, store)))
                if number:  # the first one only warms up
                    for work, cost in zip(WORKS, costs, strict=True):
                        found[work, of.rows].append(cost)
                        print(f"  {work:<40}{of.rows:>10,} payments {cost[0]:>8,.0f} µs", flush=True)
    grown = [
        Grown(
            of.rows,
            postbacks[of.rows],
            store.sizes(of),
            *early,
            relations.sizes(of.url),
            relations.updates(of.url),
        )
        for of, early in zip(sizes, before, strict=True)
    ]
    return _costs(found, sizes[0].rows), _sizes(grown)


def _costs(found: Mapping[tuple[str, int], Sequence[Cost]], fewest: int) -> Section:
    section = Section(
        "Growth", _HEAD, notes=[f"{CONNECTIONS} connections; the last column is CPU in all by that of the same round."]
    )
    for (work, rows), costs in found.items():
        totals, postgres, rates = (list(column) for column in zip(*costs, strict=True))
        least = [cost[0] for cost in found[work, fewest]]
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


def _sizes(grown: Sequence[Grown]) -> Section:
    section = Section(
        "What a payment takes on disk",
        (
            "table, index, or share of HOT updates",
            *(f"bytes by payment, {each.rows:,}" for each in grown),
            *(f"more by postback, {each.rows:,}" for each in grown),
        ),
        notes=[
            (
                "Bytes as filled, by the payments in the table: a payment has one event and one body then. What the "
                "measurement above added is by the postbacks that it took, reads and claims and vacuums and all. What "
                f"never had more than {_LITTLE // 1024} kB is left out."
            ),
            "A table is without its indexes. HOT updates touch no index; a dash is where there were no updates.",
        ],
    )
    names = [
        name
        for name in grown[0].sizes
        if any(max(each.filled[name], each.sizes_after[name]) > _LITTLE for each in grown)
    ]
    for title, those in [*((name, [name]) for name in names), ("all of these", names)]:
        cells = [one(sum(each.filled[name] for name in those) / each.rows) for each in grown]
        more = [sum(each.sizes_after[name] - each.sizes[name] for name in those) / each.postbacks for each in grown]
        section.rows.append([title, *cells, *map(one, more)])
    for table in _WATCHED:
        cells = [relations.updated(each.updates, each.updates_after)[table] for each in grown]
        section.rows.append([f"HOT updates of {table}", *["-"] * len(grown), *cells])
    return section
