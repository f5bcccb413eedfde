"""Secrets and personal data: where each of them may be, and that it is nowhere else after everything went wrong."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from app.settings import Settings
from tests.conftest import QUICK
from tests.faults.canaries import CVVS, HELD, MARK, PERSONAL, TOKENS, Place, Scene
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


NOT_SENT = {"refused", "database-down"}
"""Payments by saved card of which K-Pay hears nothing."""


@pytest.mark.timeout(300)
def test_every_way_of_a_saved_card_was_tried(scene: Scene) -> None:
    """K-Pay got each token and cvv once from each of the two services, but for those that could not be sent."""
    sent = sorted((each["cvv"], each["token"]) for each in scene.sent_by_card)
    assert sent == sorted((cvv, TOKENS[path]) for path, cvv in CVVS.items() if path not in NOT_SENT for _ in range(2))
    assert len(set(CVVS.values())) == 12


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", CVVS)
def test_fault_53_a_saved_card_is_nowhere_whatever_becomes_of_its_payment(path: str, scene: Scene) -> None:
    """A valid cvv and token are in no log at DEBUG, traceback, dump, metric, answer or process list, however it ended.

    Paid, declined, reset, timed out, repeated by K-Pay in HTML and JSON, refused, the database gone before and after,
    killed, in conflict, repeated by the caller.
    """
    assert scene.places_alone(CVVS[path]) == set()
    assert scene.places_alone(TOKENS[path]) == set()


@pytest.mark.timeout(300)
def test_fault_53_the_search_for_a_cvv_finds_four_digits(scene: Scene) -> None:
    """Four digits that are no secret are found where they were put, in logs, dumped bytes and answers: it can see."""
    written = {Place.LOG, Place.CONSOLE, Place.DATABASE, "answers by card"}
    assert scene.places_alone(MARK) >= written
    assert scene.places_alone(f'"x": "{MARK}"') == {Place.DATABASE}  # K-Pay's own words, which are bytes there
    echoed = f"\\x{MARK.encode().hex()}"
    for place in Place:
        for told in (f'{{"cvv": "{MARK}"}}', f"cvv={MARK}&x", f"SecretStr({MARK})", f"-{MARK}-", f"\n{MARK}\n", echoed):
            assert Scene(words={place: f"before {told} after"}).places_alone(MARK) == {place}, told
        for told in (f"E{MARK}159", f"A{MARK}B", f"1{MARK}", f"{MARK}7", f"12.{MARK}", f"\\x{b'E0246B'.hex()}"):
            assert Scene(words={place: f"before {told} after"}).places_alone(MARK) == set(), told


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
