"""The database that is measured on: one embedded PostgreSQL, filled with payments by SQL, and the postbacks for them.

A payment's refid follows from its number, in Python as in SQL, so that whoever loads the service or PostgreSQL itself
needs no list. The newest tenth is pending, and not due for a month.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app import months
from app.dev.postgres import EmbeddedPostgres, running
from app.macs import RETURL, Macs
from app.schema import migrate
from bench import relations
from bench.figures import BenchError
from bench.kernel import tree_cpu
from tests.support import SECRET_KEY, create_database, query

GATEWAY = "127.0.0.1"
CLIENT = "shop"
PENDING_SHARE = 10
LEAST_PENDING = 5_000

# Durability as it comes; memory and checkpoints as a real server of this size has them, so that none falls into one
# contender's turn and not into the other's.
OPTIONS = (
    *("-c", "shared_buffers=1GB", "-c", "max_connections=300"),
    *("-c", "max_wal_size=16GB", "-c", "checkpoint_timeout=1h"),
)

REFID = "'P' || lpad(({n})::text, 9, '0') || upper(left(md5(({n})::text), 14))"
"""A payment's refid from its number, in SQL."""
TID = "'A' || lpad(({n})::text, 13, '0')"

_PAYMENTS = f"""
INSERT INTO payments (
    refid, client, fingerprint, amount, currency, pmethod, bankid, msisdn, email, details, cname, cnumber, redirecturl,
    orderid, metadata, gateway, tid, momtransactionid, payaccount, statusid, statusdesc, status, failure_code,
    failure_detail, last_seq, created_at, updated_at, final_at, doubt_from, expires_at, next_check_at, check_step,
    checked_at)
SELECT {REFID.format(n="n")}, '{CLIENT}', sha256(n::text::bytea), 500 + n % 90000, 'RWF', 'momo', '63510',
    '25078' || lpad((n * 7919 % 10000000)::text, 7, '0'), 'payer' || n || '@example.rw', 'order ' || n,
    'KANEZA', 'C' || n % 50000, 'https://shop.example.rw/done', 'order-' || n,
    jsonb_build_object('basket', (n % 1000)::text), '{GATEWAY}', {TID.format(n="n")},
    CASE WHEN kind = 'succeeded' THEN 'M' || lpad((n * 104729)::text, 14, '0') END,
    CASE WHEN kind = 'succeeded' THEN '25078' || lpad((n * 7919 % 10000000)::text, 7, '0') END,
    CASE kind WHEN 'succeeded' THEN '01' WHEN 'failed' THEN '02' ELSE '03' END, 'as K-Pay says it', kind,
    CASE WHEN kind = 'failed' THEN 'declined' END, CASE WHEN kind = 'failed' THEN 'declined by the payer' END,
    1, made, made, CASE WHEN kind <> 'pending' THEN made + interval '1 minute' END, made,
    CASE WHEN kind = 'pending' THEN now() + interval '60 days' ELSE made + interval '1 day' END,
    CASE WHEN kind = 'pending' THEN now() + interval '30 days' END, 2, made + interval '30 seconds'
FROM (
    SELECT n, now() - (ROWS - n) * (interval '365 days' / ROWS) AS made,
        CASE WHEN n > ROWS - PENDING THEN 'pending' WHEN n % 7 = 0 THEN 'failed' ELSE 'succeeded' END AS kind
    FROM generate_series(1::bigint, ROWS) AS n) AS numbers
"""  # noqa: S608 - numbers and our own words
_EVENTS = f"""
INSERT INTO events (refid, seq, type, source, status, client, position)
SELECT {REFID.format(n="n")}, 1, 'payment.pending', 'gateway_reply', 'pending', '{CLIENT}', n
FROM generate_series(1::bigint, ROWS) AS n
"""  # noqa: S608 - numbers and our own words
_BODIES = """
INSERT INTO bodies (refid, month, digest, source, body, content_type)
SELECT refid, date_trunc('month', created_at AT TIME ZONE 'UTC')::date, sha256(n::text::bytea), 'gateway_reply',
    convert_to('{"reply": "PENDING", "success": 1, "retcode": 0, "tid": "' || n || '"}', 'UTF8'), 'application/json'
FROM (SELECT refid, created_at, substr(refid, 2, 9)::bigint AS n FROM payments) AS made ORDER BY n
"""


def refid_of(number: int) -> str:
    """Return what SQL makes of `REFID`."""
    return f"P{number:09}{hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()[:14].upper()}"


def pending_of(rows: int) -> int:
    """Return how many of so many payments are pending."""
    return max(rows // PENDING_SHARE, min(LEAST_PENDING, rows))


class Store:
    """One PostgreSQL with its databases."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._twins: dict[str, Payments] = {}
        self._sizes: dict[str, Mapping[str, int]] = {}

    def cpu(self) -> float:
        """Return the CPU seconds of the whole server: backends, those that have ended, and its own processes."""
        return tree_cpu(self.server.pid)

    def filled(self, name: str, rows: int, *, twin: bool = False) -> "Payments":
        """Make a database with `rows` payments and return them; with a `twin`, a copy of it besides."""
        self.empty(name)
        url = self.server.url_of(name)
        migrate(url)
        _begin_earlier(url)
        for statement in (_PAYMENTS, _EVENTS, _BODIES):
            query(url, statement.replace("ROWS", str(rows)).replace("PENDING", str(pending_of(rows))))
        query(url, f"UPDATE feed SET last = {rows}")  # noqa: S608 - a number
        self.tidy(name)
        self._sizes[url] = relations.sizes(url)
        if twin:  # now: a database cannot be copied while anybody uses it
            create_database(self.server, f"{name}_twin", template=name)
            self._twins[url] = Payments(self.server.url_of(f"{name}_twin"), rows)
        return Payments(url, rows)

    def twin(self, of: "Payments") -> "Payments":
        """Return the copy that was made with a database."""
        return self._twins[of.url]

    def sizes(self, of: "Payments") -> Mapping[str, int]:
        """Return the bytes of each table and index of a database as they were when it had just been filled."""
        return self._sizes[of.url]

    def empty(self, name: str) -> str:
        """Make an empty database and return its address."""
        create_database(self.server, name, template="template0")
        return self.server.url_of(name)

    def tidy(self, name: str) -> None:
        """Vacuum, analyse and write out, so that nothing of it is left for a measurement."""
        query(self.server.url_of(name), "VACUUM ANALYZE")
        query(self.server.url, "CHECKPOINT")


def _begin_earlier(url: str) -> None:
    """Give a fresh database the months that it would have if it had been there for as long as its payments."""
    end = query(url, "SELECT date_trunc('month', now() AT TIME ZONE 'UTC')")[0][0].date()
    month = end.replace(year=end.year - 1)
    query(url, "ALTER TABLE bodies DETACH PARTITION bodies_before")
    query(url, f"ALTER TABLE bodies ATTACH PARTITION bodies_before FOR VALUES FROM (MINVALUE) TO ('{month}')")
    while month < end:
        name, after = months.name_of(month), months.following(month)
        query(url, f"CREATE TABLE {name} PARTITION OF bodies FOR VALUES FROM ('{month}') TO ('{after}')")
        month = after


class Payments:
    """The payments of one database, and postbacks for the newest of them, no two alike."""

    def __init__(self, url: str, rows: int, *, recent: int | None = None) -> None:
        self.url = url
        self.rows = rows
        self.pending = pending_of(rows) if recent is None else recent
        self.first = rows - self.pending
        """The number before that of the first one that postbacks come for."""
        self.sent = 0
        """How many postbacks were sent, by whomever: the next one is another."""
        macs = Macs([SECRET_KEY])
        refids = [refid_of(self.first + 1 + number) for number in range(self.pending)]
        self._targets = [
            (refid, f"/kpay/returl/{refid}/{macs.make(RETURL, refid)}", f"A{self.first + 1 + number:013}")
            for number, refid in enumerate(refids)
        ]
        random.Random(6).shuffle(self._targets)  # noqa: S311 - it must come again

    def postbacks(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Yield path and body of so many. A payment comes again only after all others had theirs, with other words."""
        for number in range(self.sent, self.sent + count):
            refid, path, tid = self._targets[number % self.pending]
            body = (
                f'{{"tid": "{tid}", "refid": "{refid}", "momtransactionid": "{70_000_000_000 + number}", '
                '"payaccount": "250788312934", "statusid": "01", "statusdesc": "Successfully processed transaction"}'
            )
            yield path, body.encode()


@contextmanager
def stored(folder: Path) -> Iterator[Store]:
    """Yield a running PostgreSQL that keeps what it commits, whatever else its environment says."""
    with running(folder / "postgres", OPTIONS) as server:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            if query(server.url, f"SHOW {name}")[0][0] != "on":
                raise BenchError(f"{name} is off: nothing that is measured so is worth anything")
        yield Store(server)
