"""The commands: what an operator types and reads."""

import json
import re
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from app.dev.laptop import free_port
from app.settings import Settings
from tests.given import Postgres, name_of
from tests.support import (
    SECRET_KEY,
    Service,
    Simulator,
    answers,
    eventually,
    kpayd,
    new_refid,
    query,
    run_command,
    settings,
)

REQUIRED = sorted(f"KPAYD_{name.upper()}" for name, field in Settings.model_fields.items() if field.is_required())


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_without_settings_it_refuses_with_a_line_for_each(command: str) -> None:
    """Nothing falls back to anything: every required setting is named, with what it is, and the exit code is 2."""
    done = run_command({}, command)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert sorted(line.split()[1] for line in lines) == REQUIRED
    assert all(line.startswith("kpayd: KPAYD_") and " is required: " in line for line in lines)


def test_a_malformed_setting_is_named_without_its_value() -> None:
    """Each malformed setting has its line; a secret that is too short is not shown."""
    env = settings("mysql://u:hush@h/d", "http://kpay.example/", 1, {"SECRET_KEYS": "hush", "CONFIRM": "perhaps"})
    done = run_command(env, "serve")
    assert done.returncode == 2
    at_fault = {line.split()[1] for line in done.stderr.splitlines()}
    assert at_fault == {"KPAYD_DATABASE_URL", "KPAYD_GATEWAY_URL", "KPAYD_SECRET_KEYS", "KPAYD_CONFIRM"}
    assert "hush" not in done.stderr


def test_a_secret_file_and_an_env_file_are_read(tmp_path: Path) -> None:
    """`.env` in the working directory is read; the environment wins over it."""
    (tmp_path / ".env").write_text("KPAYD_DATABASE_URL=mysql://x\n")
    with kpayd(tmp_path, {}, "migrate") as process:
        assert process.child.wait(20) == 2
    assert "KPAYD_DATABASE_URL is malformed" in process.words


def test_migrate_brings_an_empty_database_up(postgres_url: str) -> None:
    """`kpayd migrate` makes the schema; a second run is no error."""
    for _ in range(2):
        done = run_command({"KPAYD_DATABASE_URL": postgres_url}, "migrate")
        assert (done.returncode, done.stderr.strip()) == (0, "kpayd: the schema is current")
    assert query(postgres_url, "SELECT to_regclass('payments') AS it")[0]["it"] == "payments"


@pytest.fixture
def postgres_url(postgres: object, new_database: Callable[[], str]) -> str:
    """Return an empty database."""
    url = new_database()
    query(url, "DROP SCHEMA public CASCADE")
    query(url, "CREATE SCHEMA public")
    return url


def test_a_database_that_is_not_there_is_one_line() -> None:
    """No traceback: what cannot be used, and which setting says where it is."""
    env = {"KPAYD_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{free_port()}/kpayd"}
    for command in (["migrate"], ["clients", "list"], ["payments", "list"]):
        done = run_command(env, *command)
        assert done.returncode == 1
        assert "KPAYD_DATABASE_URL" in done.stderr
        assert "Traceback" not in done.stderr


def test_clients_are_added_listed_rotated_and_revoked(service: Service) -> None:
    """A key is shown once; after a rotation both are valid, after the next the first is not, after revoking none."""
    name = f"shop.{new_refid()}"

    def key_of(*arguments: str) -> str:
        shown = json.loads(run_command(service.env, "clients", *arguments, "--json").stdout)
        assert list(shown) == ["name", "key", "webhook_secret", "scopes"]
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", shown["webhook_secret"])
        return str(shown["key"])

    def works(key: str) -> bool:
        with service.client(key) as http:
            return http.get("/v1/payments").status_code == 200

    first = key_of("add", name, "--scope", "payments:read")
    assert len(first) >= 43  # 256 bits
    assert works(first)
    assert run_command(service.env, "clients", "add", name).returncode == 1
    second = key_of("rotate", name)
    assert works(first)
    assert works(second)
    third = key_of("rotate", name)
    assert works(third)
    assert eventually(lambda: not works(first), seconds=10)
    listed = {each["name"]: each for each in json.loads(run_command(service.env, "clients", "list", "--json").stdout)}
    assert listed[name]["scopes"] == ["payments:read"]
    assert not {first, second, third} & set(str(listed).split("'"))
    assert run_command(service.env, "clients", "revoke", name).returncode == 0
    assert eventually(lambda: not works(second) and not works(third), seconds=10)
    stored = query(service.database_url, "SELECT * FROM clients WHERE name = $1", name)[0]
    assert not any(key in str(dict(stored)) for key in (first, second, third))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "no spaces"], "NAME must be"),
        (["add", "x", "--scope", "everything"], "everything"),
        (["add", "x", "--webhook-url", "http://plain.example"], "https"),
        (["rotate", "nobody-has-this"], "no client 'nobody-has-this'"),
        (["revoke", "nobody-has-this"], "no client"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_about_a_client_is_one_line(service: Service, arguments: list[str], words: str) -> None:
    """What is wrong is said, and nothing is made."""
    done = run_command(service.env, "clients", *arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_payments_are_listed_shown_and_checked(service: Service, simulator: Simulator) -> None:
    """The operator's look-up, timeline and check-now, as tables with numbers masked and as JSON in full."""
    refid = service.start("250780000005")["refid"]
    listed = json.loads(run_command(service.env, "payments", "list", "--status", "pending", "--json").stdout)
    assert refid in {each["refid"] for each in listed}
    shown = run_command(service.env, "payments", "show", refid)
    assert "25078...005" in shown.stdout
    assert "250780000005" not in shown.stdout
    simulator.settle(refid, "01", postback=False)
    checked = json.loads(run_command(service.env, "payments", "check", refid, "--json").stdout)
    assert checked["payment"]["status"] == "succeeded"
    assert checked["events"][-1]["type"] == "payment.succeeded"
    missing = run_command(service.env, "payments", "show", "nobody")
    assert (missing.returncode, missing.stderr.strip()) == (1, "kpayd: there is no payment 'nobody'")


def test_the_doctor_finds_all_well(service: Service) -> None:
    """A right deployment: every finding ok, exit code 0."""
    done = run_command(service.env, "doctor", "--json")
    findings = json.loads(done.stdout)
    assert [each["what"] for each in findings] == ["settings", "database", "schema", "months", "gateway", "public url"]
    assert all(each["ok"] for each in findings), findings
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("wrong", "what", "words"),
    [
        ({"GATEWAY_PASSWORD": "wrong"}, "gateway", "KPAYD_GATEWAY_PASSWORD"),
        ({"GATEWAY_URL": "http://127.0.0.1:9/"}, "gateway", "KPAYD_GATEWAY_URL"),
        ({"PUBLIC_URL": "http://127.0.0.1:9"}, "public url", "KPAYD_PUBLIC_URL"),
        ({"PUBLIC_URL": "/wrong-prefix"}, "public url", "KPAYD_PUBLIC_URL"),
        ({"DATABASE_URL": "postgresql://127.0.0.1:9/kpayd"}, "database", "KPAYD_DATABASE_URL"),
        ({"SECRET_KEYS": "short"}, "settings", "KPAYD_SECRET_KEYS"),
    ],
    ids=["password", "gateway", "public url", "prefix", "database", "settings"],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(
    service: Service, wrong: dict[str, str], what: str, words: str
) -> None:
    """Each thing that is wrong is found, with the setting to look at; exit code 1."""
    wrong = {name: value.replace("/wrong", f"{service.url}/wrong") for name, value in wrong.items()}
    env = dict(service.env) | {f"KPAYD_{name}": value for name, value in wrong.items()}
    done = run_command(env, "doctor", "--json")
    assert done.returncode == 1
    bad = [each for each in json.loads(done.stdout) if not each["ok"]]
    assert [each["what"] for each in bad] == [what]
    assert words in bad[0]["detail"]
    assert SECRET_KEY not in done.stdout


UNFIT = {
    "forgetful": (["ALTER DATABASE {} SET synchronous_commit = off"], "synchronous_commit"),
    "read-only": (["ALTER DATABASE {} SET default_transaction_read_only = on"], "standby"),
    "not UTF8": (
        ["DROP DATABASE {}", "CREATE DATABASE {} ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"],
        "LATIN1",
    ),
}


@pytest.mark.parametrize(("statements", "words"), UNFIT.values(), ids=UNFIT)
def test_the_doctor_finds_a_database_that_must_not_keep_payments(
    service: Service, postgres: Postgres, new_database: Callable[[], str], statements: list[str], words: str
) -> None:
    """One that forgets what it has stored, cannot write, or has no letters for every name; exit code 1."""
    url = new_database()
    for statement in statements:
        query(postgres.url, statement.format(f'"{name_of(url)}"'))
    done = run_command(dict(service.env) | {"KPAYD_DATABASE_URL": url}, "doctor", "--json")
    assert done.returncode == 1
    [finding] = [each for each in json.loads(done.stdout) if each["what"] == "database"]
    assert not finding["ok"]
    assert words in finding["detail"]


def test_a_laptop_starts_stops_and_keeps_its_data(tmp_path: Path) -> None:
    """`kpayd dev` prints URLs and a key that works; after Ctrl-C and a new start, payments and key are still there."""
    ports = [free_port(), free_port()]
    options = ["--port", str(ports[0]), "--simulator-port", str(ports[1]), "--data-dir", str(tmp_path / "data")]
    keys = []
    for turn in range(2):
        with kpayd(tmp_path, {}, "dev", *options) as process:
            key = eventually(lambda: re.search(r"kpk_[\w-]{43}", process.words), seconds=60)[0]
            keys.append(key)
            answers(process, f"http://127.0.0.1:{ports[0]}/readyz")
            headers = {"Authorization": f"Bearer {key}"}
            with httpx2.Client(base_url=f"http://127.0.0.1:{ports[0]}", headers=headers, trust_env=False) as http:
                assert len(http.get("/v1/payments").json()["items"]) == turn
                body = {"refid": f"order-{turn}", "amount": 4200, "pmethod": "momo", "msisdn": "250788312934"}
                body |= {
                    "email": "a@example.rw",
                    "details": "x",
                    "cname": "K",
                    "redirecturl": "https://shop.example.rw/",
                }
                assert http.post("/v1/payments", json=body).status_code == 201
            process.child.send_signal(signal.SIGINT)
            assert process.child.wait(30) == 0
    assert keys[0] == keys[1]
    assert stat.S_IMODE((tmp_path / "data" / "laptop.json").stat().st_mode) == 0o600


def test_a_taken_port_is_one_line(tmp_path: Path, service: Service) -> None:
    """`kpayd dev` beside something else says which port is taken and how to choose another."""
    port = service.url.rsplit(":", 1)[1]
    with kpayd(tmp_path, {}, "dev", "--port", port, "--data-dir", str(tmp_path / "data")) as process:
        assert process.child.wait(20) == 1
    assert f"port {port} is taken" in process.words
    assert "Traceback" not in process.words


def test_the_demo_ends_well(tmp_path: Path) -> None:
    """`kpayd demo` plays its scenes through the real loop and exits 0."""
    with kpayd(tmp_path, {}, "demo") as process:
        assert process.child.wait(100) == 0, process.words
    assert "8 of 8 payments ended as they should" in process.words


def test_the_demo_tells_when_it_does_not_end_well(tmp_path: Path, service: Service, simulator: Simulator) -> None:
    """The demo can fail: against a K-Pay that refuses us it says so and exits 1."""
    own = ["--url", service.url, "--simulator-url", simulator.url, "--key", service.key]
    simulator.behave(refuse_credentials=True)
    try:
        with kpayd(tmp_path, {}, "demo", *own) as process:
            assert process.child.wait(100) == 1
    finally:
        simulator.behave(refuse_credentials=False)
    assert "FAIL" in process.words or "cut short" in process.words


def test_replicas_that_start_together_migrate_once(postgres_url: str, tmp_path: Path) -> None:
    """Two `kpayd migrate` at the same moment on an empty database: both end well."""
    env = {"KPAYD_DATABASE_URL": postgres_url}
    with kpayd(tmp_path, env, "migrate") as one, kpayd(tmp_path, env, "migrate") as other:
        assert [one.child.wait(60), other.child.wait(60)] == [0, 0], one.words + other.words
