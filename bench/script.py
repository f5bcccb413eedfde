"""The statements of one payment's whole loop as a script for pgbench, taken from the service's own code as it runs.

One payment is played by the parts of a service, one after the other and with nothing beside it: recorded, K-Pay's reply
taken in, published, its postback stored, its check claimed and the answer taken in, published again. What SQLAlchemy
sends for it is written down with its transactions; refid, tid and momtransactionid become pgbench's number, so that
each turn is another payment. What is batched comes for one item.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Pool, event

from app import logs
from app.api.context import Context
from app.api.schemas import PaymentRequest
from app.domain import Source, Status
from app.inbox import Postback
from app.kpay import meaning
from app.kpay.wire import read
from app.main import open_context
from app.raw import Raw
from app.worker import background
from bench.figures import BenchError
from bench.servers import settings_of
from bench.store import CLIENT
from tests.support import Simulator, eventually, new_refid, payment, query

TURN = """\\set i :i + 1
\\set n 100000000000000000 + :offset + :i * :clients + :client_id
"""
"""Each turn has a number of its own; all have as many digits."""
MADE = "refid LIKE '1%'"
"""Which payments of a filled database were made by it: the others' begin with a letter."""

_POSITIONS = 10**15
"""The feed begins here, so that a position is known by its size."""
_EVENTS = 4
"""More than one payment has: so far apart are the positions of two turns."""
_CLAIMS = 64
_BOUNDS = {"BEGIN;", "COMMIT;"}
"""The driver's words for what the engine tells, too, and in its place."""


@dataclass(slots=True)
class _Recorder:
    """Notes what is sent, in its order."""

    sent: list[tuple[str, Sequence[Any]]] = field(default_factory=list)

    def begin(self, connection: Connection) -> None:
        """Note where a transaction begins."""
        self._bound(connection, "BEGIN")

    def commit(self, connection: Connection) -> None:
        """Note where one ends."""
        self._bound(connection, "COMMIT")

    def execute(self, _connection: Connection, _cursor: object, statement: str, values: Any, *rest: Any) -> None:  # noqa: ANN401 - the driver's
        """Note a statement; of one for many, each."""
        _context, many = rest
        self.sent += [(statement, each) for each in (values if many else [values])]

    def connect(self, connection: Any, *_: object) -> None:  # noqa: ANN401 - SQLAlchemy's adapter
        """Let the driver tell what it is given past SQLAlchemy."""
        connection.driver_connection.add_query_logger(self._logged)

    def _logged(self, logged: Any) -> None:  # noqa: ANN401 - asyncpg has no types
        if logged.query not in _BOUNDS:
            self.sent.append((logged.query, logged.args))

    def _bound(self, connection: Connection, word: str) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            self.sent.append((word, ()))


@contextmanager
def _recording() -> Iterator[_Recorder]:
    recorder = _Recorder()
    hooks: list[tuple[type[Engine | Pool], str, Callable[..., Any]]] = [
        (Engine, "begin", recorder.begin),
        (Engine, "before_cursor_execute", recorder.execute),
        (Engine, "commit", recorder.commit),
        (Pool, "connect", recorder.connect),
    ]
    for hook in hooks:
        event.listen(*hook)
    try:
        yield recorder
    finally:
        for hook in hooks:
            event.remove(*hook)


def captured(url: str, simulator: Simulator) -> str:
    """Play a payment on a database that nobody else uses and return the script of its loop.

    Raises `BenchError` where the payment does not end as paid.
    """
    query(url, f"UPDATE feed SET last = {_POSITIONS}")  # noqa: S608 - a number
    return TURN + "".join(f"{line};\n" for line in asyncio.run(_lines(url, simulator)))


async def _lines(url: str, simulator: Simulator) -> Sequence[str]:
    settings = settings_of(url, f"{simulator.url}/")
    logs.configure(settings.log_format, "ERROR")
    with _recording() as recorder:
        async with open_context(settings) as parts, background(parts.inbox.run()):
            await _play(parts, simulator)  # once before: a new connection has words of its own
            recorder.sent.clear()
            refid = await _play(parts, simulator)
            sent = list(recorder.sent)
            row = await parts.lookup.one(refid)
    if row is None or row.status != Status.SUCCEEDED:
        raise BenchError(f"the payment that was played is not paid but {row and row.status}")
    names = frozenset((refid, row.tid, row.momtransactionid))
    return [_as_sql(statement, values, names) for statement, values in sent]


async def _play(parts: Context, simulator: Simulator) -> str:
    """Play one payment to its end and return its refid."""
    order = PaymentRequest.model_validate(payment(refid=new_refid())).order()
    refid: str = (await parts.payments.start(order, CLIENT, None)).payment.refid
    await _publish(parts)
    said = await asyncio.to_thread(eventually, lambda: _paid(simulator, refid))
    message = read(json.dumps(said).encode(), "application/json")
    raw = Raw(Source.POSTBACK, json.dumps(said).encode(), "application/json", remote="127.0.0.1")
    await parts.inbox.put(Postback(refid, meaning.of_postback(message, hint=True), raw))
    for claim in await parts.reconciler._lease(_CLAIMS):  # noqa: SLF001 - what `run` does, without its clock
        await parts.reconciler._check_claimed(claim)  # noqa: SLF001 - the same
    await _publish(parts)
    return refid


async def _publish(parts: Context) -> None:
    while await parts.publisher.publish():
        pass


def _paid(simulator: Simulator, refid: str) -> dict[str, str] | None:
    """Return what a postback says of a payment once its payer has paid."""
    known = simulator.ledger(refid) or {}
    names = ("tid", "refid", "momtransactionid", "payaccount", "statusid", "statusdesc")
    return {name: known.get(name, "") for name in names} if known.get("statusid") == "01" else None


def _as_sql(statement: str, values: Sequence[Any], names: frozenset[str]) -> str:
    sql = re.sub(r"--.*", "", statement).strip()
    return re.sub(r"\$(\d+)", lambda number: _literal(values[int(number[1]) - 1], names), sql)


def _literal(value: object, names: frozenset[str]) -> str:
    match value:
        case None:
            return "NULL"
        case list() | tuple():
            return f"ARRAY[{', '.join(_literal(each, names) for each in value)}]" if value else "'{}'"
        case int() if value > _POSITIONS:
            return f"(CAST(:n AS bigint) * {_EVENTS} + {value % _EVENTS})"
        case bool() | int() | float():
            return str(value)
        case bytes():
            return f"'\\x{value.hex()}'::bytea"
        case str() | date() | timedelta():  # a time is a date, too
            return ":n" if value in names else _quoted(str(value))
    raise BenchError(f"a parameter of the type {type(value).__name__} cannot be written as SQL")


def _quoted(words: str) -> str:
    # A colon would be a variable to pgbench, even in a text.
    escaped = words.replace("\\", "\\\\").replace("'", "''").replace(":", "\\x3a")
    return f"E'{escaped}'"
