"""The doctor: examines what a deployment needs, one finding each, and says what to do about what is not right."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2
from sqlalchemy import text

from app import months
from app.database import UNAVAILABLE, Database, open_database
from app.kpay import client as kpay
from app.kpay import codes
from app.kpay.errors import GatewayError
from app.macs import NO_SUCH_RETURL
from app.schema import Schema
from app.settings import Settings, SettingsError, is_loopback, load

if TYPE_CHECKING:
    from datetime import date

OLDEST_POSTGRES = 150_000
_SETTINGS = text(
    "SELECT name, setting FROM pg_settings WHERE name IN"
    " ('server_version_num', 'server_encoding', 'transaction_read_only', 'fsync', 'synchronous_commit')"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined."""

    what: str
    ok: bool
    detail: str


async def examine() -> list[Finding]:
    """Examine settings, database, schema, K-Pay and the public URL; without settings there is nothing else to see."""
    try:
        settings = load(Settings)
    except SettingsError as exc:
        return [Finding("settings", ok=False, detail=line) for line in exc.lines]
    findings = [Finding("settings", ok=True, detail="complete")]
    async with open_database(settings.database_url, pool=1, pooled=settings.database_pooled) as database:
        findings += await _database(database)
    findings.append(await _gateway(settings))
    findings.append(await _public_url(settings))
    return findings


async def _database(database: Database) -> list[Finding]:
    try:
        async with database.autocommit() as connection:
            shown = {row.name: row.setting for row in await connection.execute(_SETTINGS)}
            exists = (await connection.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one()
            version = exists and (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    except UNAVAILABLE as exc:
        why = str(exc.__cause__ or exc).splitlines()[0] if str(exc) else type(exc).__name__
        return [Finding("database", ok=False, detail=f"cannot be reached: {why}; check KPAYD_DATABASE_URL")]
    number = int(shown["server_version_num"])
    wrong = _wrong_with(number, shown)
    detail = "; ".join([f"PostgreSQL {number // 10000}.{number % 10000}", *wrong])
    database_finding = Finding("database", ok=not wrong, detail=detail)
    judged = Schema.of_this_code().judge(version)
    findings = [database_finding, Finding("schema", ok=judged in ("current", "newer"), detail=judged)]
    return [*findings, await _months(database)] if findings[-1].ok else findings


def _wrong_with(number: int, shown: Mapping[str, str]) -> list[str]:
    """Return why a PostgreSQL of this version with these settings must not keep payments."""
    wrong = []
    if number < OLDEST_POSTGRES:
        wrong.append("too old: 15 or newer is needed")
    if shown["transaction_read_only"] == "on":
        wrong.append("read-only: is this a standby?")
    if shown["server_encoding"] != "UTF8":
        wrong.append(f"its encoding is {shown['server_encoding']}, which cannot hold every name: make it anew as UTF8")
    if "off" in (shown["fsync"], shown["synchronous_commit"]):
        wrong.append("it says that it has stored what a crash takes away: turn fsync and synchronous_commit on")
    return wrong


async def _months(database: Database) -> Finding:
    """Find out whether there are partitions for the months to come: one that is not made in time stays in the rest."""
    async with database.autocommit() as connection:
        today: date = (await connection.execute(months.TODAY)).scalar_one()
        there = await connection.run_sync(months.there)
    lacking = [f"{month:%Y-%m}" for month in months.lacking(there, today, ahead=2)]
    if not lacking:
        return Finding("months", ok=True, detail=f"made until {there[-1]:%Y-%m}")
    detail = f"not made: {', '.join(lacking)}; run kpayd migrate, and kpayd prune every month"
    return Finding("months", ok=False, detail=detail)


async def _gateway(settings: Settings) -> Finding:
    """Ask for a refid that cannot exist: 611 proves address, credentials and whitelisting in one."""
    endpoint = kpay.Endpoint(
        settings.gateway_url,
        settings.gateway_username,
        settings.gateway_password.get_secret_value(),
        settings.gateway_key.get_secret_value(),
        min(settings.gateway_timeout, 10),
    )
    try:
        async with kpay.connect(endpoint) as gateway:
            answer = await gateway.checkstatus(f"kpayd-doctor-{secrets.token_hex(8)}")
    except GatewayError as exc:
        return Finding("gateway", ok=False, detail=f"{exc}; check KPAYD_GATEWAY_URL and the way out to it")
    message = answer.message
    said = {message.statusid, message.retcode} if message else set()
    if codes.NOT_FOUND in said:
        detail = (
            f"{settings.gateway} knows us and answers 611 for an unknown refid (which tells nothing of the retailerid)"
        )
        return Finding("gateway", ok=True, detail=detail)
    for code, explanation in codes.EXPLANATIONS.items():
        if code in said:
            return Finding("gateway", ok=False, detail=f"K-Pay says {code}: {explanation}")
    what = "something else" if message else "something that is not its dialect"
    detail = f"expected 611, but HTTP {answer.http_status} brought {what}; is KPAYD_GATEWAY_URL K-Pay's endpoint?"
    return Finding("gateway", ok=False, detail=detail)


async def _public_url(settings: Settings) -> Finding:
    """Send the listener a postback with a wrong mac: only kpayd answers that the way kpayd does."""
    if settings.is_local and not is_loopback(settings.gateway):
        detail = f"{settings.public_url} is this machine: K-Pay's postbacks would never arrive; check KPAYD_PUBLIC_URL"
        return Finding("public url", ok=False, detail=detail)
    url = f"{settings.public_url}/kpay/returl/kpayd-doctor/wrong"
    try:
        async with httpx2.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.post(url, json={})
    except httpx2.HTTPError as exc:
        why = (
            f"{settings.public_url} cannot be reached from here ({type(exc).__name__}): K-Pay's postbacks would be lost"
        )
        return Finding("public url", ok=False, detail=f"{why}; is the service running, and KPAYD_PUBLIC_URL right?")
    forbidden = answer.status_code == httpx2.codes.FORBIDDEN and settings.postback_allowed_ips
    if NO_SUCH_RETURL in answer.text or (forbidden and "urn:kpayd:forbidden" in answer.text):
        return Finding("public url", ok=True, detail=f"{settings.public_url} reaches the listener")
    detail = f"{settings.public_url} answers HTTP {answer.status_code}, but not as this service; check KPAYD_PUBLIC_URL"
    return Finding("public url", ok=False, detail=detail)
