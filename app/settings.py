"""What a deployment says: every setting of kpayd, read once from `KPAYD_*`.

The command line reads them and hands values on; nothing below it looks at the environment.
"""

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "KPAYD_"
SECRETS_DIR = "/run/secrets"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEMO_KEY = "demo-only"
"""How the key in docker-compose.yml begins, which everybody knows."""

_DATABASE_OPTIONS = (
    "host",
    "port",
    "sslmode",
    "ssl",
    "connect_timeout",
    "application_name",
    "target_session_attrs",
    "prepared_statement_cache_size",
)
_NO_DATABASE_URL = "must look like postgresql://user:password@host:5432/name"
_NO_WEB_URL = "must be an https URL without query or fragment"

T = TypeVar("T", bound="DatabaseSettings")
Network = IPv4Network | IPv6Network


class SettingsError(Exception):
    """A required setting is missing or one is malformed; `lines` has one clear line for each, without its value."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine: `localhost` or a loopback address, written out."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _networks(value: object) -> object:
    parts = _split(value)
    try:
        return [ip_network(part, strict=False) for part in parts] if isinstance(parts, list) else parts
    except ValueError:
        # Without its words, which repeat the value.
        raise ValueError("must be addresses or networks, e.g. 10.0.0.0/8, 192.0.2.7") from None


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?!(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z){_LABEL}(?:\.{_LABEL})*")
"""In lower case, no dot at its end. A last label that is a number makes an address to some readers: it is no name."""


def _hosts_and_networks(entries: list[str]) -> list[str]:
    for entry in entries:
        try:
            ip_network(entry, strict=False)
        except ValueError:
            if not HOST_NAME.fullmatch(entry.lower().removesuffix(".")):
                raise ValueError("must be host names, addresses or networks, e.g. hooks.internal, 10.0.0.0/8") from None
    return entries


def _web_url(value: str) -> str:
    try:
        url = urlsplit(value)
        port_usable = url.port != 0
    except ValueError:
        # Without its words, which repeat the value and with it a password.
        raise ValueError(_NO_WEB_URL) from None
    if url.scheme not in ("http", "https") or not url.hostname or not port_usable or url.query or url.fragment:
        raise ValueError(_NO_WEB_URL)
    if url.scheme == "http" and not is_loopback(url.hostname):
        raise ValueError("must be https; http is accepted for loopback hosts only")
    if url.username or url.password:
        raise ValueError("must not hold a user name or password")
    return value


def _no_trailing_slash(value: str) -> str:
    if value.endswith("/"):
        raise ValueError("must not end with a slash")
    return value


def _database_url(value: str) -> str:
    try:
        url = urlsplit(value)
        port_usable = all(urlsplit(f"//{host}").port != 0 for host in url.netloc.rpartition("@")[2].split(","))
    except ValueError:
        # Without its words, which repeat the value and with it a password.
        raise ValueError(_NO_DATABASE_URL) from None
    if url.scheme not in ("postgresql", "postgres", "postgresql+asyncpg") or not port_usable:
        raise ValueError(_NO_DATABASE_URL)
    if any(option not in _DATABASE_OPTIONS for option, _ in parse_qsl(url.query)):
        raise ValueError(f"its options can be {', '.join(_DATABASE_OPTIONS)}")
    return value


def _long_enough(keys: list[SecretStr]) -> list[SecretStr]:
    shortest = 32
    if any(len(key.get_secret_value()) < shortest for key in keys):
        raise ValueError(f"each key must have {shortest} characters or more")
    return keys


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be printable text")
    return value


def _header(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII")
    return value


Csv = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Networks = Annotated[list[Network], NoDecode, BeforeValidator(_networks)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]
Schedule = Annotated[list[Seconds], NoDecode, BeforeValidator(_split), Field(min_length=1)]
WebUrl = Annotated[str, AfterValidator(_web_url)]


class DatabaseSettings(BaseSettings):
    """What `migrate` and the operators' commands need."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        repr=False, description="`postgresql://user:password@host:5432/name`; several hosts separated by commas"
    )
    database_pooled: bool = Field(
        default=False, description="whether a pooler shares connections between transactions (pgbouncer)"
    )
    webhook_hosts: Annotated[Csv, AfterValidator(_hosts_and_networks)] = Field(
        default=[],
        description="comma-separated hosts and CIDRs that notifications may go to besides https on public addresses; "
        "for these, http and private addresses are allowed",
    )


class Settings(DatabaseSettings):
    """Everything that `serve` and `worker` need. Secrets are `SecretStr`: neither repr nor an error shows them."""

    public_url: Annotated[WebUrl, AfterValidator(_no_trailing_slash)] = Field(
        description="where K-Pay and payers reach this service, no trailing slash; https (http for loopback only)"
    )
    gateway_url: WebUrl = Field(description="K-Pay's endpoint; every action is POSTed there")
    gateway_username: str = Field(min_length=1, description="Basic authorization at K-Pay")
    gateway_password: SecretStr = Field(min_length=1, description="Basic authorization at K-Pay")
    retailerid: str = Field(min_length=1, description="this merchant at K-Pay")
    gateway_key: Annotated[SecretStr, AfterValidator(_header)] = Field(
        default=SecretStr(""), description="sent as `Kpay-Key`; not sent when empty"
    )
    msisdn_format: Literal["international", "local"] = Field(
        default="international", description="what K-Pay is sent: `international` (`2507...`) or `local` (`07...`)"
    )
    tokenpay_pmethod: Literal["cc", "tokenpay"] = Field(
        default="cc", description="what a payment by saved card is sent as: `cc` (the guide's text) or `tokenpay`"
    )
    merchant_name: Annotated[str, Field(max_length=60), AfterValidator(_printable)] = Field(
        default="", description="what payers are told they pay; when empty, the host of the payment's `redirecturl`"
    )
    secret_keys: Annotated[
        list[SecretStr], NoDecode, BeforeValidator(_split), Field(min_length=1), AfterValidator(_long_enough)
    ] = Field(description="comma-separated, 32 characters or more each; the first signs, all verify (rotation)")
    postback_allowed_ips: Networks = Field(
        default=[], description="comma-separated CIDRs that postbacks may come from; empty means any"
    )
    trusted_proxies: Networks = Field(
        default=[], description="comma-separated CIDRs whose `X-Forwarded-For` is believed"
    )
    confirm: Literal["always", "never"] = Field(
        default="always", description="`always`: a postback is a hint and `checkstatus` decides; `never`: it decides"
    )
    gateway_timeout: Seconds = Field(default=30, description="seconds for one K-Pay call, all told")
    check_schedule: Schedule = Field(
        default=[10, 20, 30, 60, 120, 300, 600, 1800, 3600],
        description="seconds between the checks of an open payment; the last one repeats",
    )
    unknown_grace: Seconds = Field(
        default=120, description="seconds from a request whose outcome is unknown until `611` is believed"
    )
    postback_rechecks: Schedule = Field(
        default=[2, 5, 15], description="seconds between the checks after a postback while K-Pay still says pending"
    )
    expire_after: Seconds = Field(default=86400, description="seconds until an open payment is `expired`")
    check_concurrency: int = Field(default=16, ge=1, le=1000, description="checkstatus calls at once, per process")
    webhook_schedule: Schedule = Field(
        default=[5, 30, 120, 600, 1800, 3600, 10800, 21600, 43200, 86400],
        description="seconds between the attempts of a notification; after the last one it is parked",
    )
    webhook_timeout: Seconds = Field(default=15, description="seconds for one attempt, all told")
    webhook_concurrency: int = Field(
        default=16, ge=1, le=1000, description="notifications under way at once to one client, per process"
    )
    webhook_disable_after: Seconds = Field(
        default=432_000, description="seconds of nothing but failures until a client's notifications are disabled"
    )
    allow_usd: bool = Field(default=False, description="whether `currency` `USD` is accepted")
    checkout_hosts: Csv = Field(
        default=["pay.esicia.rw", "pay.esicia.com"],
        description="hosts, besides `GATEWAY_URL`'s own, that a `checkout_url` may send a payer to",
    )
    stop_delay: float = Field(
        default=3,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="seconds after SIGTERM in which `/readyz` says 503 and requests are still taken",
    )
    log_format: Literal["json", "console"] = Field(default="json", description="`json` or `console`")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level logged")

    @model_validator(mode="after")
    def _no_demo_keys(self) -> Self:
        demo = any(key.get_secret_value().startswith(DEMO_KEY) for key in self.secret_keys)
        if demo and not is_loopback(self.gateway):
            raise ValueError(f"{PREFIX}SECRET_KEYS still holds the demo's public key: make one of your own")
        return self

    @property
    def is_local(self) -> bool:
        """Whether payers and K-Pay reach this service by loopback: a laptop or a test."""
        return is_loopback(urlsplit(self.public_url).hostname or "")

    @property
    def gateway(self) -> str:
        """The host of `GATEWAY_URL`: the gateway that a payment belongs to for ever (docs/rules.md, 8)."""
        return urlsplit(self.gateway_url).hostname or ""

    @property
    def gateway_port(self) -> int:
        """The port of `GATEWAY_URL`."""
        url = urlsplit(self.gateway_url)
        return url.port or {"http": 80, "https": 443}[url.scheme]


def load(kind: type[T]) -> T:
    """Read settings from the environment, `.env` and secret files; raises `SettingsError`, a line for each fault."""
    sources: dict[str, Any] = {"_secrets_dir": SECRETS_DIR} if Path(SECRETS_DIR).is_dir() else {}
    try:
        return kind(**sources)
    except ValidationError as exc:
        first = {str(error["loc"][:1]): error for error in reversed(exc.errors(include_input=False))}
        raise SettingsError([_line(kind, error) for error in reversed(first.values())]) from None


def _line(kind: type[DatabaseSettings], error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    name = str(error["loc"][0])
    help_ = (kind.model_fields[name].description or "").replace("`", "")
    if error["type"] == "missing":
        return f"{PREFIX}{name.upper()} is required: {help_}"
    return f"{PREFIX}{name.upper()} is malformed: {message} ({help_})"


def environment() -> dict[str, str]:
    """This process's environment without kpayd's settings: what `dev` and `demo` start their own processes with."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
