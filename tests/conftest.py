"""What the tests run on: a real PostgreSQL, a real service over HTTP, and the simulator, each a process of its own."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.dev.postgres import EmbeddedPostgres, running
from app.schema import migrate
from tests.fault_table import Results
from tests.given import Given, Postgres
from tests.statements.plugin import Lint
from tests.support import Service, Simulator, create_database, is_cluster, query, run_service, run_simulator

QUICK = {
    "CHECK_SCHEDULE": "0.3,0.5,1,1",
    "POSTBACK_RECHECKS": "0.3,0.6,1",
    "UNKNOWN_GRACE": "3",
    "GATEWAY_TIMEOUT": "4",
}
"""Settings with which everything that takes minutes takes seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the options: where the databases are, and where the fault table is written."""
    parser.addoption("--database-url", metavar="URL", help="run on this PostgreSQL; its user must be a superuser")
    parser.addoption(
        "--database-pooler", metavar="URL", help="a transaction-pooling pgbouncer before it, to go through"
    )
    parser.addoption("--fault-table", type=Path, metavar="FILE", help="write the table of faults and how they went")


def pytest_configure(config: pytest.Config) -> None:
    """Note how the tests of faults go, and which statements are sent."""
    if config.getoption("--database-pooler") and not config.getoption("--database-url"):
        raise pytest.UsageError("--database-pooler: which PostgreSQL is behind it? give --database-url, too")
    config.pluginmanager.register(Results(config.getoption("--fault-table")), "fault-table")
    config.pluginmanager.register(Lint(), "statements")


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """Run one server for all tests, or use the one that is given; its databases are made from a migrated template."""
    url, pooler = pytestconfig.getoption("--database-url"), pytestconfig.getoption("--database-pooler")
    with given(url, pooler) if url else embedded() as server:
        create_database(server, "kpayd_template", template="template0")
        migrate(server.url_of("kpayd_template"))
        yield server


@contextmanager
def embedded() -> Iterator[EmbeddedPostgres]:
    """Run a server.

    Not in pytest's own folder: every run of pytest closes that to others, and as root the server runs as nobody.
    """
    with tempfile.TemporaryDirectory(prefix="kpayd-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with running(folder / "data", ["-c", "max_connections=300"]) as server:
            yield server


@contextmanager
def given(url: str, pooler: str | None) -> Iterator[Given]:
    """Use a server that is there, and drop what was made on it."""
    server = Given(url, pooler)
    try:
        yield server
    finally:
        for name in server.made.values():
            query(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def new_database(postgres: Postgres) -> Callable[[], str]:
    """Return a maker of fresh migrated databases; it returns their URLs."""
    made = iter(range(1_000_000))

    def make() -> str:
        name = f"kpayd_{next(made)}"
        create_database(postgres, name, template="kpayd_template")
        return postgres.url_of(name)

    return make


@pytest.fixture
def single(new_database: Callable[[], str]) -> str:
    """Return a migrated database that is of no cluster."""
    url = new_database()
    if is_cluster(url):
        pytest.skip("this run is on a cluster")
    return url


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
