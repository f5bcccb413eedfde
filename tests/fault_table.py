"""The fault table: every test named `test_fault_NN_...`, what it promises, and how it went.

    ./dev test --fault-table docs/faults.md      # writes the table anew; what the run left out keeps its result

The number is that of the catalogue below, the promise is the test's docstring, and the result is the run's.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "faults.md"

_NAME = re.compile(r"test_fault_(\d\d)_\w+")

FAULTS: Mapping[int, str] = {
    1: "forged postback that says paid",
    2: "forged postback that says not paid, on a paid payment",
    3: "the same postback again",
    4: "a storm of one payment's postbacks",
    5: "a true mac with another refid",
    6: "another tid than the payment's",
    7: "paid, then not paid",
    8: "not paid, then paid",
    9: "paid after expiry",
    10: "contradicting evidence at the same moment",
    11: "postback before K-Pay's reply to the request",
    12: "postback that never comes",
    13: "postback for a payment that is not in the database",
    14: "body that is too large",
    15: "head or body that dribbles in",
    16: "wrong content type",
    17: "the quirks of K-Pay's own guide",
    18: "NUL",
    19: "lone surrogates",
    20: "100,000-deep nesting, 5,000-digit numbers",
    21: "NaN, invalid UTF-8, nothing at all",
    22: "duplicate keys",
    23: "database down while a postback comes",
    24: "no answer from K-Pay, or half of one",
    25: "answer from K-Pay that dribbles in",
    26: "608: K-Pay has this refid already",
    27: "611: K-Pay does not know the refid (yet)",
    28: "HTML, 500, cut JSON or another refid as an answer",
    29: "codes: listed, unlisted, as number and as text",
    30: "600 to 605: K-Pay refuses us",
    31: "K-Pay down, then back, with a backlog",
    32: "redirects and bad certificates",
    33: "checkout URL on a foreign host",
    34: "kill -9 at every step",
    35: "error on COMMIT",
    36: "data disk full",
    37: "WAL disk full",
    38: "PostgreSQL killed with -9",
    39: "failover to a standby",
    40: "PostgreSQL in a black hole",
    41: "every connection taken",
    42: "a pooler that shares connections between transactions",
    43: "many reconcilers, one payment",
    44: "lease that runs out while K-Pay is asked",
    45: "a replica whose clock is wrong",
    46: "deploy while requests are under way",
    47: "migration under load",
    48: "old code on the new schema",
    49: "a receiver of notifications is down or slow",
    50: "a webhook URL that leads inside",
    51: "a receiver's answer that is huge, slow or a bomb",
    52: "notifications twice, or out of order",
    53: "CVV and other secrets",
    54: "macs and keys in logs",
    55: "forged X-Forwarded-For",
    56: "request smuggling",
    57: "guessing keys",
    58: "another client's payments",
    59: "forged log lines",
    60: "input that makes a pattern run for ever",
    61: "the container's rights",
    62: "the supply chain",
    63: "personal data that piles up",
}
"""What can happen, by number."""

_HEAD = """# Faults, and what holds

What can go wrong, what kpayd promises then, and the test that shows it on real processes: PostgreSQL, uvicorn, kill -9,
a TCP proxy that misbehaves, full disks. `./dev test --fault-table docs/faults.md` writes this table from its run;
`tests/test_docs.py` sees that no number is missing and that the promises are the tests' own.

| no. | fault | promise | test | result |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Test:
    """One test of a fault."""

    number: int
    path: str
    name: str
    promise: str

    @property
    def row(self) -> str:
        """The table's line, less the result."""
        cells = (str(self.number), FAULTS[self.number], self.promise, f"`{self.path}::{self.name}`")
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def tests() -> Sequence[Test]:
    """Return every fault test of this suite, read from the files: also those that a run was not asked for."""
    found = []
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (match := _NAME.fullmatch(node.name)):
                promise = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                found.append(Test(int(match[1]), str(path.relative_to(TESTS)), node.name, promise))
    return sorted(found, key=lambda test: (test.number, test.path, test.name))


def written() -> Mapping[str, str]:
    """Return the table as the document has it: each line less its result, and the result."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    rows = [line.removesuffix(" |").rsplit(" | ", 1) for line in lines]
    return {f"{row} |": result for row, result in rows}


class Results:
    """Notes how each fault test of a run went: a pytest plugin."""

    def __init__(self, table: Path | None) -> None:
        self._table = table
        self._results: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what matters of one phase of one test; of a test with many cases the worst one counts."""
        match = _NAME.search(report.nodeid)
        if match is None or (report.when != "call" and report.passed):
            return
        why = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        self._results.setdefault(match[0], {})[report.outcome] = why

    def _result(self, name: str) -> str:
        seen = self._results.get(name, {})
        if "failed" in seen:
            return "FAILED"
        if "skipped" in seen:
            return f"skipped: {seen['skipped']}"
        return "holds" if "passed" in seen else "not run"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell how many faults were shown to hold, and loudly which were not; write the table if asked to."""
        if not self._results:
            return
        rows = {test: self._result(test.name) for test in tests()}
        terminalreporter.section("faults")
        run = {test: result for test, result in rows.items() if result != "not run"}
        held = {test.number for test in run} - {test.number for test, result in run.items() if result != "holds"}
        terminalreporter.line(f"{len(held)} of {len(FAULTS)} faults held in this run")
        for test, result in run.items():
            if result != "holds":
                terminalreporter.line(f"{test.number:02} {FAULTS[test.number]}: {result} ({test.name})", red=True)
        if self._table is not None:
            before = written() if self._table.exists() else {}
            kept = {
                test: before.get(test.row, result) if result == "not run" else result for test, result in rows.items()
            }
            self._table.write_text(_HEAD + "".join(f"{test.row} {result} |\n" for test, result in kept.items()))
