"""Growth: what a postback, a read and a claim cost with few payments and with many, and what these take on disk."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.api.context import Context
from app.database import Database, Prepared
from app.main import open_context
from app.reconcile import Claim
from bench import reading, relations
from bench.figures import Sample, Section, one, spread, two, whole
from bench.kernel import process_cpu
from bench.postbacks import MOST
from bench.servers import Fresh, Loaded, Postbacks, as_service, settings_of
from bench.store import LEAST_PENDING, REFID, Payments, Store
from tests.support import query

CONNECTIONS = 32
CLAIM = 16
"""How many payments one claim leases: what `KPAYD_CHECK_CONCURRENCY` is by itself."""
CLAIMS = 300

WORKS = (
    "a postback for one of the newest",
    "a read",
    f"{CLAIM} due payments claimed",
    "the same put off, as by their answers (PostgreSQL alone)",
)
_LITTLE = 64 * 1024
_WATCHED = ("payments", "events", "deliveries")
_HEAD = ("what", "payments in the table", "CPU in all, µs each", "of PostgreSQL alone", "a second", "CPU of the least")

# What an answer does to the row, and no more: leased rows that nobody answers would pile up before the next claim.
_ANSWERED = Prepared(
    text(
        "UPDATE payments SET leased_until = NULL, next_check_at = now() + interval '1 day' "
        "WHERE refid = ANY(CAST(:refids AS text[]))"
    )
)
_BACKEND = Prepared(text("SELECT pg_backend_pid() AS pid"))

Cost = tuple[float, float, float]
"""CPU of both, of PostgreSQL alone (microseconds), and how many a second."""


class _Account:
    """What something took that is done again and again: CPU of this process and of one backend, and time."""

    def __init__(self, backend: int) -> None:
        self._backend = backend
        self._spent = (0.0, 0.0, 0.0)

    def _now(self) -> tuple[float, float, float]:
        return time.process_time(), process_cpu(self._backend), time.perf_counter()

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count what is done meanwhile."""
        before = self._now()
        yield
        self._spent = tuple(  # type: ignore[assignment] # of three
            spent + late - early for spent, early, late in zip(self._spent, before, self._now(), strict=True)
        )

    def cost(self, times: int, *, postgres_alone: bool = False) -> Cost:
        """Return it for each time."""
        own, postgres, seconds = self._spent
        return ((0 if postgres_alone else own) + postgres) / times * 1e6, postgres / times * 1e6, times / seconds


async def _claims(parts: Context) -> tuple[Cost, Cost]:
    """Claim and put off by turns, each by a connection of its own; return what either costs for one claim.

    By their two backends' CPU: autovacuum comes when it likes, and can take as much as all of this.
    """

    async def put_off(claims: Sequence[Claim]) -> None:
        async with parts.database.direct() as by:
            await _ANSWERED.fetch(by, refids=[claim.refid for claim in claims])

    async def backend(of: Database) -> int:
        async with of.direct() as by:  # the connection that is at hand: one, since one thing is done at a time
            return int((await _BACKEND.fetch(by))[0].pid)

    lease, leased = parts.reconciler._lease, set()  # noqa: SLF001 - the very statements, without the call
    await put_off(await lease(CLAIM))
    claiming = _Account(await backend(parts.reconciler._database))  # noqa: SLF001
    answering = _Account(await backend(parts.database))
    for _ in range(CLAIMS):
        with claiming.spending():
            claims = await lease(CLAIM)
        with answering.spending():
            await put_off(claims)
        leased.add(len(claims))
    if leased != {CLAIM}:
        raise AssertionError(f"claims came back with {sorted(leased)} payments")
    return claiming.cost(CLAIMS), answering.cost(CLAIMS, postgres_alone=True)


@contextmanager
def _worker(url: str) -> Iterator[Callable[[], tuple[Cost, Cost]]]:
    """Yield what measures claims by connections that stay: a worker has the same ones for half an hour."""
    with asyncio.Runner() as runner:
        context = open_context(settings_of(url, "http://127.0.0.1:9/"))
        parts = runner.run(context.__aenter__())
        try:
            yield lambda: runner.run(_claims(parts))
        finally:
            runner.run(context.__aexit__(None, None, None))


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
        loads, workers = {}, {}
        for of in sizes:
            server, service = stack.enter_context(as_service(folder, of.url))
            recent = Payments(of.url, of.rows, recent=LEAST_PENDING)
            recent.sent = of.sent
            # Those that are over: in the small one half are pending, and have less to tell.
            wanted = Fresh(reading.Reads("/v1/payments/", of.first, service.key))
            loads[of.rows] = (
                Loaded(folder, store, server, Postbacks(recent), MOST),
                Loaded(folder, store, server, wanted, reading.MOST),
            )
            workers[of.rows] = stack.enter_context(_worker(of.url))
        for number in range(rounds + 1):
            for of in sizes:
                samples = [load.measure(seconds if number else 1, CONNECTIONS) for load in loads[of.rows]]
                postbacks[of.rows] += samples[0].requests
                costs = [_cost(sample) for sample in samples]
                _due(of)
                costs += workers[of.rows]()
                if number:  # the first one only warms up
                    for work, cost in zip(WORKS, costs, strict=True):
                        found[work, of.rows].append(cost)
                        print(f"  {work:<60}{of.rows:>10,} payments {cost[0]:>8,.0f} µs", flush=True)
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
        "Growth",
        _HEAD,
        notes=[
            (
                f"{CONNECTIONS} connections; the last column is CPU in all by that of the same round. Of claims and "
                "answers it is that of the backends that serve them, without autovacuum, which comes when it likes."
            )
        ],
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
