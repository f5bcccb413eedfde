"""A postback taken in durably, from an authentic path to OK after the commit, beside PostgreSQL and the peers."""

from contextlib import ExitStack
from pathlib import Path

from bench import peers, pgbench
from bench.figures import BenchError, Runs, Section, rate_head, rate_rows
from bench.servers import Contender, Loaded, Postbacks, interleaved, served
from bench.store import Payments, Store

ONE, TWO, PGBENCH = "kpayd, one process", "kpayd, two processes", "pgbench, the same writes"
CONNECTIONS = (32, 128)
MOST = 12_000


def against_postgres(folder: Path, store: Store, of: Payments, *, seconds: float, rounds: int) -> Section:
    """Measure kpayd with one process and with two beside pgbench, on the same database."""
    section = Section(
        f"A postback taken in durably, {of.rows:,} payments in the table",
        rate_head("pgbench"),
        notes=[
            "pgbench sends the inbox's own statement for one postback, prepared, a transaction each.",
            "wrk and pgbench run on the same cores, with one thread; each request is another postback.",
        ],
    )
    with ExitStack() as stack:
        one = stack.enter_context(served(folder, of.url))
        two = stack.enter_context(served(folder, of.url, "--workers", "2"))
        contenders: dict[str, Contender] = {
            ONE: Loaded(folder, store, one, Postbacks(of), MOST),
            TWO: Loaded(folder, store, two, Postbacks(of), MOST),
            PGBENCH: pgbench.postbacks(folder, store, of),
        }
        for connections in CONNECTIONS:
            runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=connections)
            section.rows += rate_rows(runs, PGBENCH, connections)
    return section


def against_peers(folder: Path, store: Store, of: Payments, *, seconds: float, rounds: int) -> Section:
    """Measure kpayd beside every peer that can be set up here; of the others the table says why not."""
    section = Section(f"The same beside the peers, {of.rows:,} payments in the table", rate_head("kpayd"))
    refused: list[str] = []
    with ExitStack() as stack:
        one = stack.enter_context(served(folder, of.url))
        contenders: dict[str, Contender] = {ONE: Loaded(folder, store, one, Postbacks(of), MOST)}
        for peer in peers.all_of_them():
            try:
                made = stack.enter_context(peers.run(peer, folder, store, of))
                contender = Loaded(folder, store, made.server, made.requests, peer.most)
                contender.measure(1, CONNECTIONS[0])
            except BenchError as exc:
                refused.append(peer.name)
                section.rows.append([peer.name, f"not measured: {' '.join(str(exc).split())}", *["-"] * 6])
            else:
                contenders[peer.name] = contender
            section.notes.append(f"{peer.name}: {peer.differs}")
        for connections in CONNECTIONS:
            runs: Runs = interleaved(contenders, seconds=seconds, rounds=rounds, connections=connections)
            section.rows += rate_rows(runs, ONE, connections)
    return section
