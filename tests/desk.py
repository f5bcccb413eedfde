"""A newcomer's desk: the examples of docs/developers.md, run as they stand there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Service, new_refid

PAGE = Path(__file__).parent.parent / "docs" / "developers.md"
BLOCKS: dict[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
RUN_BY = {"sh": "sh", "py": sys.executable, "mjs": "node", "php": "php"}


@dataclass(frozen=True)
class Desk:
    """A newcomer's folder with the page's examples in it, and what the page has them put in the environment."""

    folder: Path
    env: Mapping[str, str]

    def command(self, name: str) -> list[str]:
        """Return how an example is run."""
        kind = name.partition(".")[2]
        if shutil.which(RUN_BY[kind]) is None or (kind == "sh" and shutil.which("curl") is None):
            pytest.skip(f"NOT RUN: {'curl' if kind == 'sh' else RUN_BY[kind]} is not installed, so {name} is not shown")
        (self.folder / name).write_text(BLOCKS[name])
        server = ["-S", f"127.0.0.1:{self.env.get('PORT')}"] if name == "receive.php" else []
        return [RUN_BY[kind], *server, name]

    def run(self, name: str, **more: str) -> str:
        """Run an example to its end and return what it printed."""
        done = subprocess.run(
            self.command(name), check=False, env={**self.env, **more}, cwd=self.folder, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    @contextmanager
    def running(self, name: str, **more: str) -> Iterator[Callable[[], list[str]]]:
        """Run an example until the block ends; yields what tells the lines that it has printed so far."""
        path = self.folder / f"{name}.out"
        with path.open("ab") as out:
            command, env = self.command(name), {**self.env, **more}
            child = subprocess.Popen(command, env=env, cwd=self.folder, stdout=out, stderr=out, start_new_session=True)
        try:
            yield lambda: path.read_text().splitlines()
        finally:
            os.killpg(child.pid, signal.SIGTERM)  # a shell's own child would outlive it
            child.wait(10)


def at_desk(folder: Path, service: Service, key: str, **more: str) -> Desk:
    """Return a desk whose environment is the page's."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("KPAYD_", "NO_PROXY"))}
    env = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    own = {"KPAYD_URL": service.url, "KPAYD_KEY": key, "ORDER": new_refid(), "TMPDIR": str(folder)}
    return Desk(folder, env | own | more)
