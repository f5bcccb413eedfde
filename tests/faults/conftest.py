"""Servers that a fault test may harm: a PostgreSQL of its own, with a proxy before it, and a K-Pay of its own."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals

import pytest

from app.dev.postgres import EmbeddedPostgres, running
from app.schema import migrate
from tests.proxy import Proxy, running_proxy
from tests.support import Simulator, create_database, run_simulator


class Server:
    """One PostgreSQL with a migrated database `kpayd`, and a proxy before it."""

    def __init__(self, server: EmbeddedPostgres, proxy: Proxy) -> None:
        self.server = server
        self.proxy = proxy

    @property
    def direct(self) -> str:
        """The database's address past the proxy."""
        return self.server.url_of("kpayd")

    @property
    def url(self) -> str:
        """The database's address through the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/kpayd"

    def signal(self, number: Signals) -> None:
        """Send the postmaster a signal."""
        self.server.signal(number)

    def signal_all(self, number: Signals) -> None:
        """Send every process of PostgreSQL a signal."""
        first = self.server.pid
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout  # noqa: S607
        for pid, parent in (map(int, line.split()) for line in table.splitlines()):
            if first in (pid, parent):
                with suppress(ProcessLookupError):  # a backend may have ended meanwhile
                    os.kill(pid, number)


@contextmanager
def own_server(*options: str) -> Iterator[Server]:
    """Run a PostgreSQL that may be killed, frozen or filled up."""
    with tempfile.TemporaryDirectory(prefix="kpayd-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        settings = [part for option in options for part in ("-c", option)]
        with running(folder / "data", settings) as server:
            create_database(server, "kpayd", template="template0")
            migrate(server.url_of("kpayd"))
            with running_proxy(str(server.socket)) as proxy:
                yield Server(server, proxy)


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """Run a PostgreSQL for one test, with a proxy before it."""
    with own_server() as server:
        yield server


@pytest.fixture
def own_simulator(tmp_path: Path) -> Iterator[Simulator]:
    """Run a K-Pay for one test."""
    with run_simulator(tmp_path) as simulator:
        yield simulator


NewDatabase = Callable[[], str]
