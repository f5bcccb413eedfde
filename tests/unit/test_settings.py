"""Settings: one clear line for each fault, and no secret in any text."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from app.database import async_url
from app.settings import PREFIX, DatabaseSettings, Settings, SettingsError, is_loopback, load

SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"
RIGHT = {
    "DATABASE_URL": f"postgresql://kpayd:{SECRET}@db:5432/kpayd",
    "PUBLIC_URL": "https://pay.example.rw",
    "GATEWAY_URL": "https://pay.esicia.rw/",
    "GATEWAY_USERNAME": "user",
    "GATEWAY_PASSWORD": SECRET,
    "RETAILERID": "02",
    "SECRET_KEYS": SECRET,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set the required settings rightly, and nothing else."""
    monkeypatch.chdir(tmp_path)
    for name, value in RIGHT.items():
        monkeypatch.setenv(PREFIX + name, value)


def faults() -> list[str]:
    """Return the lines that the settings are refused with."""
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    assert str(caught.value) == "\n".join(caught.value.lines)
    assert SECRET not in repr(caught.value)
    return caught.value.lines


def test_defaults() -> None:
    """With the required settings alone, the others are as the contract says."""
    settings = load(Settings)
    assert settings.check_schedule == [10, 20, 30, 60, 120, 300, 600, 1800, 3600]
    assert settings.postback_rechecks == [2, 5, 15]
    assert (settings.gateway_timeout, settings.unknown_grace, settings.expire_after) == (30, 120, 86_400)
    assert (settings.confirm, settings.msisdn_format, settings.log_format) == ("always", "international", "json")
    assert (settings.postback_allowed_ips, settings.trusted_proxies, settings.check_concurrency) == ([], [], 16)
    assert settings.gateway_key.get_secret_value() == ""
    assert settings.gateway == "pay.esicia.rw"


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("name", RIGHT)
def test_missing(name: str, empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001 - a case
    """A required setting that is missing or empty is one line that names it."""
    monkeypatch.setenv(PREFIX + name, "") if empty else monkeypatch.delenv(PREFIX + name)
    (line,) = faults()
    assert line.startswith(f"{PREFIX}{name} is required: ")


def test_all_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting at fault is named at once."""
    for name in RIGHT:
        monkeypatch.delenv(PREFIX + name)
    assert [line.split(" ")[0] for line in faults()] == [PREFIX + name for name in RIGHT]


MALFORMED = [
    ("DATABASE_URL", f"mysql://kpayd:{SECRET}@db/kpayd"),
    ("DATABASE_URL", f"postgresql://kpayd:{SECRET}@db:port/kpayd"),
    ("DATABASE_URL", f"postgresql://kpayd:{SECRET}@db/kpayd?channel_binding=require"),
    ("PUBLIC_URL", "https://pay.example.rw/"),
    ("PUBLIC_URL", "http://pay.example.rw"),
    ("PUBLIC_URL", "pay.example.rw"),
    ("PUBLIC_URL", "https://pay.example.rw?a=1"),
    ("PUBLIC_URL", "https://pay.example.rw:port"),
    ("GATEWAY_URL", "ftp://pay.esicia.rw"),
    ("GATEWAY_URL", "http://10.0.0.1/"),
    ("GATEWAY_URL", "https://"),
    ("GATEWAY_URL", f"https://user:{SECRET}@pay.esicia.rw/"),
    ("GATEWAY_URL", f"https://user:{SECRET}@pay.esicia.\u2100/"),
    ("GATEWAY_URL", "https://pay.esicia.rw:99999/"),
    ("GATEWAY_URL", "https://[::1/"),
    ("SECRET_KEYS", f"{SECRET},short"),
    ("SECRET_KEYS", ","),
    ("POSTBACK_ALLOWED_IPS", "10.0.0.0/8,words"),
    ("TRUSTED_PROXIES", "10.0.0.0/33"),
    ("CONFIRM", "sometimes"),
    ("MSISDN_FORMAT", "e164"),
    ("LOG_FORMAT", "xml"),
    ("GATEWAY_TIMEOUT", "0"),
    ("GATEWAY_TIMEOUT", "inf"),
    ("UNKNOWN_GRACE", "-1"),
    ("EXPIRE_AFTER", "nan"),
    ("CHECK_SCHEDULE", "10,words,20"),
    ("CHECK_SCHEDULE", "10,-1,0"),
    ("CHECK_SCHEDULE", ","),
    ("POSTBACK_RECHECKS", "two"),
    ("CHECK_CONCURRENCY", "0"),
    ("CHECK_CONCURRENCY", "many"),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED, ids=[f"{name}={value!a}"[:50] for name, value in MALFORMED])
def test_malformed(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed setting is one line that names it and does not repeat a secret."""
    monkeypatch.setenv(PREFIX + name, value)
    (line,) = faults()
    assert line.startswith(f"{PREFIX}{name} is malformed: ")


def test_secrets_are_not_shown() -> None:
    """No secret is in what is shown of the settings: neither the keys nor a password, the database's included."""
    settings = load(Settings)
    assert SECRET not in f"{settings!r} {settings}"
    assert SECRET not in repr(load(DatabaseSettings))


def test_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are comma-separated; white space and empty parts do not count; a bare address is a network of one."""
    monkeypatch.setenv(f"{PREFIX}CHECK_SCHEDULE", " 1, 2.5 ,,3,")
    monkeypatch.setenv(f"{PREFIX}POSTBACK_ALLOWED_IPS", "10.1.2.3/8, 192.0.2.7 ,2001:db8::/32")
    monkeypatch.setenv(f"{PREFIX}SECRET_KEYS", f"{SECRET}, {SECRET[::-1]}")
    settings = load(Settings)
    assert settings.check_schedule == [1, 2.5, 3]
    networks = ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    assert settings.postback_allowed_ips == [ip_network(network) for network in networks]
    assert [key.get_secret_value() for key in settings.secret_keys] == [SECRET, SECRET[::-1]]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"])
def test_http_on_loopback(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine's own addresses http will do."""
    monkeypatch.setenv(f"{PREFIX}PUBLIC_URL", f"http://{host}")
    assert load(Settings).public_url == f"http://{host}"


@pytest.mark.parametrize("host", ["localhost.example.rw", "127.1", "2130706433", "0.0.0.0", "10.0.0.1", "", "::"])  # noqa: S104 - binds nothing
def test_no_loopback(host: str) -> None:
    """What only looks like this machine's address is another's."""
    assert not is_loopback(host)


def test_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are read from `.env`, and the environment comes first."""
    (tmp_path / ".env").write_text(f"{PREFIX}RETAILERID=07\n{PREFIX}LOG_LEVEL=DEBUG\nOTHER=1\n")
    assert (load(Settings).retailerid, load(Settings).log_level) == ("02", "DEBUG")
    monkeypatch.delenv(f"{PREFIX}RETAILERID")
    assert load(Settings).retailerid == "07"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@db/k", "postgresql+asyncpg://u:p@db/k"),
        ("postgres://u:p@db:6432/k", "postgresql+asyncpg://u:p@db:6432/k"),
        ("postgresql+asyncpg://db/k", "postgresql+asyncpg://db/k"),
        ("postgresql://db/k?sslmode=require", "postgresql+asyncpg://db/k?ssl=require"),
        ("postgresql://db/k?connect_timeout=3&application_name=x", "postgresql+asyncpg://db/k"),
        ("postgresql://u:p%40%2F@db/k", "postgresql+asyncpg://u:p%40%2F@db/k"),
        ("postgresql://u:p@a,b:6432/k", "postgresql+asyncpg://u:p@/k?host=a%3A5432&host=b%3A6432"),
        ("postgresql:///k?host=/run/postgresql", "postgresql+asyncpg:///k?host=%2Frun%2Fpostgresql"),
    ],
)
def test_database_url(url: str, expected: str) -> None:
    """The URL that every other tool takes is taken here, `sslmode` included."""
    assert async_url(url) == expected
