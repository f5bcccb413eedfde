"""A pytest plugin: every statement that a run's processes have sent is held against the rules when the run is over.

What is not seen: processes that are started with an environment of their own, the code before (it has had its run),
and what goes by connections of its own (LISTEN, and the tests' own questions).
"""

import json
import os
import tempfile
from pathlib import Path

import pytest

from tests.statements.capture import sitecustomize as capture
from tests.statements.rules import broken


class Lint:
    """Has the statements noted, by this process and by what it starts, and looks at them in the end."""

    def __init__(self) -> None:
        self._count = 0
        self._broken: dict[str, list[str]] = {}

    def pytest_sessionstart(self) -> None:
        """Begin to note, here and in every process that is started from now on."""
        self._folder = tempfile.TemporaryDirectory(prefix="kpayd-statements-")
        before = os.environ.get("PYTHONPATH")
        path = [str(Path(capture.__file__).parent), *([before] if before else [])]
        os.environ |= {capture.FOLDER: self._folder.name, "PYTHONPATH": os.pathsep.join(path)}
        capture.listen()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Look at what was sent; a statement that breaks a rule fails the run."""
        with self._folder:
            lines = [line for path in Path(self._folder.name).iterdir() for line in path.read_text().splitlines()]
        statements = set(map(_read, lines)) - {""}
        found = {statement: list(broken(statement)) for statement in sorted(statements)}
        self._count = len(found)
        self._broken = {statement: rules for statement, rules in found.items() if rules}
        if self._broken and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell how many statements were looked at, and which break what."""
        if not self._count:
            return
        terminalreporter.section("statements")
        for statement, rules in self._broken.items():
            terminalreporter.line("; ".join(rules), red=True)
            terminalreporter.line(f"  {statement}")
        terminalreporter.line(f"{self._count} distinct statements were looked at, {len(self._broken)} break a rule")


def _read(line: str) -> str:
    try:
        return str(json.loads(line))
    except ValueError:
        return ""  # the last word of a process that was killed while it wrote
