"""The peers: other ways to take a payment's news in, each in an environment of its own, set up as its docs say.

Environments are made once, under `.kpayd/bench/NAME`, by pip or npm from the exact versions beside this file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg

from app.database import async_url
from app.dev.laptop import free_port
from bench.figures import BenchError
from bench.peers import stripe
from bench.peers.environments import SOURCES, command, node, python
from bench.servers import Fresh, Postbacks, Requests, Server, started
from bench.store import REFID, Payments, Store
from bench.wrk import spoken
from tests.support import SECRET_KEY, query


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that runs, and what makes its requests."""

    server: Server
    requests: Requests


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its name, how it differs from kpayd, and more requests than it can take in a second."""

    name: str
    differs: str
    most: int
    start: Callable[[Path, Store, Payments], AbstractContextManager[Running]]


@contextmanager
def run(peer: Peer, folder: Path, store: Store, of: Payments) -> Iterator[Running]:
    """Set a peer up over a database of its own and run it. Raises `BenchError` where that does not work here."""
    print(f"  setting up {peer.name}", flush=True)
    with ExitStack() as stack:
        try:
            running = stack.enter_context(peer.start(folder, store, of))
        except asyncpg.PostgresError as exc:
            raise BenchError(f"its tables are not as expected: {exc}") from exc
        yield running


@contextmanager
def tutorial(folder: Path, store: Store, of: Payments) -> Iterator[Running]:
    """Run the tutorials' handler over a copy of kpayd's own tables."""
    uvicorn = python("tutorial") / "uvicorn"
    own = store.twin(of)
    env = {"DATABASE_URL": async_url(own.url), "SECRET_KEY": SECRET_KEY}
    port = free_port()
    serve: list[str | Path] = [uvicorn, "server:app", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    with started(serve, SOURCES / "tutorial", env, port, folder / "tutorial.log") as server:
        yield Running(server, Postbacks(own))


@contextmanager
def getpaid(folder: Path, store: Store, of: Payments) -> Iterator[Running]:
    """Run fastapi-getpaid over as many payments of its own."""
    programs = python("getpaid", least=(3, 12))
    url = store.empty("getpaid")
    env = {"DATABASE_URL": async_url(url)}
    command([programs / "python", "tables.py"], SOURCES / "getpaid", env)
    query(
        url,
        "INSERT INTO getpaid_payment (id, order_id, amount_required, currency, status, backend, description, "  # noqa: S608 - our own words
        "amount_paid, amount_locked, amount_refunded, created_at, updated_at) "
        f"SELECT {REFID.format(n='n')}, 'order-' || n, 500 + n % 90000, 'EUR', "
        f"CASE WHEN n > {of.first} THEN 'prepared' ELSE 'paid' END, 'dummy', 'order ' || n, "
        f"CASE WHEN n > {of.first} THEN 0 ELSE 500 + n % 90000 END, 0, 0, now(), now() "
        f"FROM generate_series(1::bigint, {of.rows}) AS n",
    )
    store.tidy("getpaid")

    def confirmed(path: str, _: bytes, number: int) -> bytes:
        body = f'{{"event": "payment_confirmed", "event_id": "e{number}"}}'
        return spoken("POST", f"/api/callback/{path.split('/')[3]}", body.encode())

    port = free_port()
    serve: list[str | Path] = [
        programs / "uvicorn",
        "server:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "warning",
    ]
    with started(serve, SOURCES / "getpaid", env, port, folder / "getpaid.log") as server:
        yield Running(server, Postbacks(Payments(url, of.rows), confirmed))


@contextmanager
def djstripe(folder: Path, store: Store, of: Payments) -> Iterator[Running]:
    """Run dj-stripe's webhook endpoint under gunicorn; its key's account is known, so that nobody asks Stripe."""
    programs = python("djstripe")
    url = store.empty("djstripe")
    env = stripe.ENVIRONMENT | {"DATABASE_NAME": "djstripe", "DATABASE_HOST": str(store.server.socket.parent)}
    command([programs / "python", "server.py", "prepare"], SOURCES / "djstripe", env)
    query(
        url,
        "INSERT INTO djstripe_paymentmethod (id, livemode, djstripe_created, djstripe_updated, stripe_data) "  # noqa: S608 - a number
        f"SELECT 'pm_old' || n, false, now(), now(), '{{}}' FROM generate_series(1, {of.rows}) AS n",
    )
    store.tidy("djstripe")
    port = free_port()
    serve: list[str | Path] = [
        programs / "gunicorn",
        "server:application",
        "--workers",
        "5",
        "--bind",
        f"127.0.0.1:{port}",
    ]
    with started(serve, SOURCES / "djstripe", env, port, folder / "djstripe.log") as server:
        yield Running(server, Fresh(partial(stripe.detached, f"/stripe/webhook/{stripe.ENDPOINT}/")))


@contextmanager
def stripesync(folder: Path, store: Store, of: Payments) -> Iterator[Running]:
    """Run @supabase/stripe-sync-engine behind fastify."""
    home = node("stripesync")
    url = store.empty("stripesync")
    port = free_port()
    env = stripe.ENVIRONMENT | {
        "DATABASE_URL": url.replace("postgresql://postgres@/", "postgresql://postgres@localhost/")
    }
    command(["node", "server.cjs", "prepare"], home, env)
    query(
        url,
        "INSERT INTO stripe.charges (id, object, amount, currency, created, paid, status) "  # noqa: S608 - a number
        "SELECT 'ch_old' || n, 'charge', 500 + n % 90000, 'rwf', 1700000000 + n, true, 'succeeded' "
        f"FROM generate_series(1, {of.rows}) AS n",
    )
    store.tidy("stripesync")
    serve = ["node", "server.cjs"]
    with started(serve, home, env | {"PORT": str(port)}, port, folder / "stripesync.log") as server:
        yield Running(server, Fresh(partial(stripe.charged, "/webhooks")))


def all_of_them() -> Sequence[Peer]:
    """Return every peer."""
    return (
        Peer(
            "stripe-sync-engine in fastify",
            "an event of 3 kB, signed; one row written (an upsert of the charge), not four; no raw body is kept; ten "
            "connections to PostgreSQL, as its README has it. `charge.succeeded`, which needs no call to Stripe.",
            9_000,
            stripesync,
        ),
        Peer(
            "the tutorial FastAPI handler",
            "the same mac, tables and rows as kpayd, by the async ORM: session dependency, select, modify, commit; "
            "one uvicorn process with uvloop and httptools, no access log.",
            2_500,
            tutorial,
        ),
        Peer(
            "fastapi-getpaid",
            "its dummy backend, which checks no signature; reads the payment, then merges, commits and refreshes it: "
            "one row updated, no raw body, no timeline; one uvicorn process, no access log.",
            2_500,
            getpaid,
        ),
        Peer(
            "dj-stripe under gunicorn",
            "an event of 2 kB, signed; three rows (trigger, event, object); five sync workers (gunicorn's 2 x cores + "
            "1), a connection for each request, CONN_MAX_AGE 60. `payment_method.detached`, the one event whose object "
            "is taken from the event itself: for a charge it would call Stripe's API.",
            900,
            djstripe,
        ),
    )


__all__ = ["BenchError", "Peer", "Running", "all_of_them", "run"]
