"""Input that would make a pattern or a reader run for ever: everything that reads what others wrote reads it once."""

import ast
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import app
from app.kpay.wire import read
from app.logs import masked
from tests.support import Json, Service, at_once, hush, new_refid, payment, spoken

NEVER_ACTS = "250780000005"
LONGEST = 64 * 1024

PUMPS = (
    "a",
    "0",
    "@",
    "a.",
    ".a",
    "@a.",
    " ",
    "\t",
    "-",
    "a@",
    "/kpay/returl/",
    "/kpay/returl/a/",
    "2507",
    "+2507",
    "1,",
    "x:",
)


def patterns() -> dict[str, re.Pattern[Any]]:
    """Return every pattern of this service by where it stands: what `re` or a field's `pattern` is given."""
    found: dict[str, re.Pattern[Any]] = {}
    for path in Path(app.__file__).parent.rglob("*.py"):
        if "simulator" in path.parts:
            continue  # a stand-in, which production never runs
        tree = ast.parse(path.read_text())
        constants = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            given = [keyword.value for keyword in node.keywords if keyword.arg == "pattern"]
            if (
                isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
            ):
                given += node.args[:1]
            for each in given:
                text = constants.get(each.id) if isinstance(each, ast.Name) else getattr(each, "value", None)
                if isinstance(text, str | bytes):
                    flags = re.IGNORECASE if isinstance(text, bytes) else 0
                    found[f"{path.name}:{node.lineno}"] = re.compile(text, flags)
    return found


def cpu(work: Callable[[], object]) -> float:
    """Return the seconds of this thread's own CPU that `work` takes, whatever else the machine does."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


@pytest.mark.parametrize("where", sorted(patterns()))
def test_fault_60_no_pattern_runs_for_ever(where: str) -> None:
    """Every pattern of the service goes through 64 KiB of the worst text in the time of one reading, not of its square.

    A quadratic one takes ten seconds and more for such a text, one that backtracks exponentially for ever; these take
    a few milliseconds.
    """
    pattern = patterns()[where]
    for pump in (*PUMPS, "\r\nupgrade", "\r\nupgrade "):
        for end in ("", "!", "\n", "@"):
            text: Any = pump * (LONGEST // len(pump)) + end
            given = text.encode() if isinstance(pattern.pattern, bytes) else text
            assert cpu(lambda: (pattern.fullmatch(given), pattern.sub(given[:0], given))) < 1, pump  # noqa: B023 - called at once


def test_patterns_are_found() -> None:
    """The search for patterns finds those that are known to be there, so that a new one is examined too."""
    names = {where.partition(":")[0] for where in patterns()}
    assert names >= {"schemas.py", "payments.py", "logs.py", "server.py", "codes.py", "database.py"}


BODIES = (
    b"{",
    b'{"a":',
    b'{"a":[',
    b"[",
    b'"',
    b",",
    b"{},",
    b'{"a":1,',
    b"a=1&",
    b"%",
    b"a=%",
    b"\\",
    b'"\\',
    b"\xff",
    b"1",
    b"--x\r\n",
)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_fault_60_the_reader_reads_once(kind: str) -> None:
    """64 KiB of whatever K-Pay's reader and the log's masks find hardest cost a fraction of a second."""
    for start in (b"", b"{", b'{"statusid":"'):
        for pump in BODIES:
            body = start + pump * (LONGEST // len(pump))
            assert cpu(lambda: read(body, kind)) < 1, (start, pump)  # noqa: B023 - called at once
            assert cpu(lambda: masked(body.decode(errors="replace"))) < 1, (start, pump)  # noqa: B023 - called at once


def own_cpu(service: Service) -> float:
    """Return the seconds of CPU that the service has used."""
    fields = Path(f"/proc/{service.process.child.pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_fault_60_no_field_costs_more_than_reading_it(service: Service) -> None:
    """A text of 60,000 characters in any field, header or parameter is refused for less than a second of CPU."""
    begun = service.start(NEVER_ACTS)
    asked: Json = payment(NEVER_ACTS, refid=new_refid(), cnumber="1", logourl="x", bankid="x", orderid="x")
    for pump in ("a", "a@a.", "0", "https://a.", "[", "%00"):
        long = pump * (60_000 // len(pump))
        calls: list[tuple[str, str, Json, Mapping[str, str]]]
        calls = [("POST", "/v1/payments", asked | {name: long}, {}) for name in asked if name != "amount"]
        calls += [("POST", "/v1/payments", asked | {"metadata": {long: long[:99]}}, {})]
        calls += [
            ("POST", service.returl(begun["refid"]), {"refid": begun["refid"], "statusid": long, long[:99]: 1}, {})
        ]
        names = ("Authorization", "Idempotency-Key", "X-Request-ID", "X-Forwarded-For", "Content-Type", "Host")
        calls += [("POST", "/v1/payments", asked, {name: long}) for name in names]
        for method, path, body, headers in calls:
            before = own_cpu(service)
            answer = service.http.request(method, path, json=body, headers=headers)
            assert answer.status_code < 500, (path, pump)
            assert own_cpu(service) - before < 1, (path, pump, headers.keys(), list(body)[-1])
        for parameter in ("cursor", "msisdn", "tid", "status", "created_after", "wait"):
            before = own_cpu(service)
            (said,) = at_once(
                service.url, [spoken("GET", f"/v1/payments?{parameter}={long}", authorization=f"Bearer {service.key}")]
            )
            assert said.status in {400, 422}
            assert own_cpu(service) - before < 1, (parameter, pump)
    hush(service)
