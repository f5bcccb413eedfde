"""PostgreSQL itself, loaded by pgbench: the ceiling of whatever stands before it.

The postback is the inbox's own statement for one item: the same writes, one transaction each.
"""

import re
import subprocess
from pathlib import Path

from app.dev.postgres import binaries
from app.inbox import _STORE  # the very statement
from app.models import payments
from bench.figures import BenchError, Sample
from bench.store import REFID, TID, Payments, Store

_ITEM = f"""WITH item AS (
    SELECT refid, sha256(body) AS digest, body, 'application/json'::text AS content_type, '127.0.0.1'::text AS remote,
        'succeeded'::text AS agrees, tid, mom AS momtransactionid, '250788312934'::text AS payaccount,
        '01'::text AS statusid, 'Successfully processed transaction'::text AS statusdesc
    FROM (
        SELECT refid, tid, mom, convert_to('{{"tid": "' || tid || '", "refid": "' || refid
            || '", "momtransactionid": "' || mom || '", "payaccount": "250788312934", "statusid": "01", '
            || '"statusdesc": "Successfully processed transaction"}}', 'UTF8') AS body
        FROM (
            SELECT {REFID.format(n="n")} AS refid, {TID.format(n="n")} AS tid, 'B' || mom AS mom
            FROM (SELECT CAST(:n AS bigint) AS n, CAST(:mom AS bigint) AS mom) AS numbers) AS named) AS said
), fresh AS ("""  # noqa: S608 - our own words

_POSTBACK = """\\set i :i + 1
\\set mom :offset + :i * :clients + :client_id
\\set n :first + 1 + permute(:mom, :targets)
"""
_COLUMNS = ", ".join(column.name for column in payments.c)
_READ = f"""\\set n random(1, :rows)
SELECT {_COLUMNS} FROM payments WHERE refid = {REFID.format(n="CAST(:n AS bigint)")};
"""  # noqa: S608 - our own columns


def _postback() -> str:
    statement = str(_STORE)
    one = _ITEM + statement.partition("), fresh AS (")[2]
    return _POSTBACK + re.sub(r"--.*", "", one).strip() + ";\n"


class PgBench:
    """Runs one script again and again."""

    def __init__(self, folder: Path, store: Store, of: Payments, script: str, *, protocol: str = "prepared") -> None:
        self._protocol = protocol
        self._path = folder / f"{id(self)}.sql"
        self._path.write_text(script)
        self._store = store
        self._of = of

    def measure(self, seconds: float, connections: int) -> Sample:
        """Run for so long with so many clients in one thread; raises `BenchError` where a transaction failed."""
        numbers = {
            "i": 0,
            "clients": connections,
            "offset": self._of.sent,
            "first": self._of.first,
            "targets": self._of.pending,
            "rows": self._of.rows,
        }
        server = self._store.server
        name = self._of.url.partition("@/")[2].partition("?")[0]
        command = [str(binaries() / "pgbench"), "-n", "-M", self._protocol, "-c", str(connections), "-j", "1"]
        command += ["-T", str(max(1, round(seconds))), "-f", str(self._path), "-h", str(server.socket.parent)]
        command += [f"-D{key}={value}" for key, value in numbers.items()]
        before = self._store.cpu()
        done = subprocess.run([*command, "-U", "postgres", name], check=False, capture_output=True, text=True)
        used = self._store.cpu() - before
        count = re.search(r"actually processed: (\d+)", done.stdout)
        rate = re.search(r"tps = ([0-9.]+)", done.stdout)
        if done.returncode != 0 or count is None or rate is None or "failed transactions: 0 " not in done.stdout:
            raise BenchError(f"pgbench failed: {done.stderr.strip() or done.stdout.strip()}")
        requests = int(count[1])
        self._of.sent += 2 * requests + connections
        return Sample(requests, requests / float(rate[1]), None, used)


def postbacks(folder: Path, store: Store, of: Payments) -> PgBench:
    """Return what stores a postback a transaction."""
    return PgBench(folder, store, of, _postback())


def reads(folder: Path, store: Store, of: Payments, *, protocol: str = "prepared") -> PgBench:
    """Return what reads a payment by its refid; "simple" is the protocol of `pgbench -S` as it comes."""
    return PgBench(folder, store, of, _READ, protocol=protocol)
