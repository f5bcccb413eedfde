"""Secrets and personal data: where each of them may be, and that it is nowhere else after everything went wrong."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from app.settings import Settings
from tests.conftest import QUICK
from tests.faults.canaries import HELD, PERSONAL, Place, Scene
from tests.faults.canary_play import driven
from tests.faults.conftest import Server
from tests.support import Simulator, payment, query, run_command, run_service

NOWHERE: frozenset[Place] = frozenset()
STORED = frozenset({Place.DATABASE})
SHOWN = frozenset({Place.DATABASE, Place.COMMANDS})
"""Stored, and shown to an operator by `kpayd payments show`."""

ALLOWED: Mapping[str, frozenset[Place]] = {
    "cvv": NOWHERE,
    "token": NOWHERE,
    "gateway-username": NOWHERE,
    "gateway-password": NOWHERE,
    "gateway-basic": NOWHERE,
    "gateway-key": NOWHERE,
    "secret-key": NOWHERE,
    "old-secret-key": NOWHERE,
    "database-password": NOWHERE,
    "api-key": NOWHERE,
    "wrong-key": NOWHERE,
    "mac": NOWHERE,
    "wrong-mac": NOWHERE,
    # Notifications are signed with it, so it is kept as it is.
    "webhook-secret": STORED,
    "idempotency-key": STORED,
    "msisdn": STORED,
    "cnumber": STORED,
    "payaccount": STORED,
    "email": SHOWN,
    "cname": SHOWN,
    "details": SHOWN,
    "metadata": SHOWN,
    "redirecturl": SHOWN,
    "orderid": STORED,
}
"""Where each value is to be found, and nowhere else: a value that is stored must be found, or the search is blind."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Play everything once."""
    return driven(tmp_path_factory.mktemp("canaries"))


@pytest.mark.timeout(300)
def test_everything_was_tried(scene: Scene) -> None:
    """Every kind of refusal and failure was met, and tracebacks were written."""
    assert scene.statuses >= {400, 401, 403, 404, 405, 409, 413, 422, 500, 503}
    assert "Traceback" in scene.words[Place.LOG]
    for place in Place:
        assert len(scene.words[place]) > 100, place


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in ALLOWED if name not in ("mac", "api-key", "wrong-mac", "wrong-key")])
def test_fault_53_secrets_are_where_they_belong(name: str, scene: Scene) -> None:
    """No log, error answer, metric or process list holds a secret or a payer's data, and the database no secret.

    The table above says which values are stored and which an operator is shown.
    """
    assert scene.places(name) == ALLOWED[name]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["mac", "api-key", "wrong-mac", "wrong-key"])
def test_fault_54_no_key_and_no_mac_is_written_down(name: str, scene: Scene) -> None:
    """What opens a door, an API key or a listener's mac, true or mistyped, is in no log, answer or dump."""
    assert scene.places(name) == ALLOWED[name]


@pytest.mark.timeout(300)
def test_fault_53_the_environment_is_its_owners(scene: Scene) -> None:
    """The settings of a running service can be read from the process by nobody but its own user and root."""
    assert scene.readable_by
    assert set(scene.readable_by.values()) == {0o400}


def test_fault_53_a_row_that_the_database_refuses_is_not_printed(
    own_postgres: Server, simulator: Simulator, tmp_path: Path
) -> None:
    """A statement that PostgreSQL refuses is logged without the row that it was about."""
    rows = {"email": PERSONAL["email"], "cname": PERSONAL["cname"], "details": PERSONAL["details"]}
    query(own_postgres.direct, f"ALTER TABLE payments ADD CONSTRAINT one CHECK (email <> '{rows['email']}')")
    with run_service(tmp_path, own_postgres.url, simulator, QUICK) as service:
        answer = service.http.post("/v1/payments", json=payment(**rows))
        assert answer.status_code == 500
        assert "CheckViolationError" in service.process.words
        assert [value for value in rows.values() if value in service.process.words + answer.text] == []


def test_fault_53_a_setting_at_fault_is_named_and_not_shown() -> None:
    """Whatever stands in a setting, `serve` names the setting that is at fault and does not repeat its value."""
    word = HELD["gateway-password"]
    done = run_command({f"KPAYD_{name.upper()}": f"{word}://{word}@{word}" for name in Settings.model_fields}, "serve")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) > 10
    assert [line for line in done.stderr.splitlines() if word in line] == []
