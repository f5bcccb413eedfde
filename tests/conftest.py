"""What the tests run on: a real PostgreSQL, a real service over HTTP, and the simulator, each a process of its own."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.dev.postgres import EmbeddedPostgres, running
from app.schema import migrate
from tests.fault_table import Results
from tests.support import Service, Simulator, create_database, run_service, run_simulator

QUICK = {
    "CHECK_SCHEDULE": "0.3,0.5,1,1",
    "POSTBACK_RECHECKS": "0.3,0.6,1",
    "UNKNOWN_GRACE": "3",
    "GATEWAY_TIMEOUT": "2",
}
"""Settings with which everything that takes minutes takes seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the option that writes the fault table."""
    parser.addoption("--fault-table", type=Path, metavar="FILE", help="write the table of faults and how they went")


def pytest_configure(config: pytest.Config) -> None:
    """Note how the tests of faults go."""
    config.pluginmanager.register(Results(config.getoption("--fault-table")), "fault-table")


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """Run one server for all tests, its databases made from a migrated template.

    Not in pytest's own folder: every run of pytest closes that to others, and as root the server runs as nobody.
    """
    with tempfile.TemporaryDirectory(prefix="kpayd-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with running(folder / "data", ["-c", "max_connections=300"]) as server:
            create_database(server, "kpayd_template", template="template0")
            migrate(server.url_of("kpayd_template"))
            yield server


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres) -> Callable[[], str]:
    """Return a maker of fresh migrated databases; it returns their URLs."""
    made = iter(range(1_000_000))

    def make() -> str:
        name = f"kpayd_{next(made)}"
        create_database(postgres, name, template="kpayd_template")
        return postgres.url_of(name)

    return make


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """Run one K-Pay for all tests; its payers act after 0.3 s."""
    with run_simulator(tmp_path_factory.mktemp("simulator")) as simulator:
        yield simulator


@pytest.fixture(scope="session")
def service(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run one service for all tests that do not harm it."""
    folder = tmp_path_factory.mktemp("service")
    with run_service(folder, new_database(), simulator, QUICK) as service:
        yield service
