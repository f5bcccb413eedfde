"""API clients: who may call, with which scopes. Keys are 256 random bits and kept as SHA-256 only."""

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from cachetools import TTLCache
from sqlalchemy import case, func, insert, null, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.database import UNAVAILABLE, Database
from app.domain import Scope
from app.models import Row, client_events, clients

KEY_PREFIX = "kpk_"

REMEMBERED_SECONDS = 5.0
"""How long a process trusts a look-up: a revoked key dies within this time."""

_SEEN_SECONDS = 3_600.0
_USED_EVERY = text("interval '1 minute'")
_KEYS = (
    (clients.c.key_hash, clients.c.key_used_at),
    (clients.c.previous_key_hash, clients.c.previous_key_used_at),
)

log = structlog.get_logger()


class ClientError(Exception):
    """An operator's request about a client that cannot be met; the message says why."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who calls, and what they may do."""

    name: str
    scopes: frozenset[str]
    redirect_hosts: frozenset[str] = frozenset()
    """Where its payers' browsers may be sent in the end; empty: anywhere."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is shown when a client is made or rotated; `key` is empty where it is as before: nobody knows it here."""

    name: str
    key: str
    webhook_secret: str
    scopes: Sequence[str]


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _no_client(name: str) -> str:
    return f"there is no client {name!r} with a valid key (a revoked name is not used again)"


def new_key() -> str:
    """Return a fresh key: 256 random bits behind a prefix that secret scanners can look for."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_webhook_secret() -> str:
    """Return a fresh secret as the Standard Webhooks specification writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Clients:
    """The clients of this database. Looked up on every request, remembered for a few seconds.

    `run` notes when their keys were used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: TTLCache[bytes, Client | None] = TTLCache(1024, REMEMBERED_SECONDS, time.monotonic)
        self._looking: dict[bytes, asyncio.Task[Client | None]] = {}
        self._used: set[bytes] = set()
        self._seen: TTLCache[bytes, bool] = TTLCache(1024, _SEEN_SECONDS, time.monotonic)

    def has_seen(self, key: str) -> bool:
        """Whether `key` was somebody's within the last hour: then it is no guess."""
        return _hash(key) in self._seen

    def remembered(self, key: str) -> Client | None:
        """Return the client that `key` was found to belong to a moment ago; else ask `by_key`."""
        return self._known.get(_hash(key))

    async def by_key(self, key: str) -> Client | None:
        """Return the client that `key` belongs to, or None: unknown and revoked look the same."""
        hashed = _hash(key)
        try:
            return self._known[hashed]
        except KeyError:
            look_up = self._looking.get(hashed)
            if look_up is None:
                # One for all who come meanwhile: under load hundreds find the same key forgotten at once.
                look_up = asyncio.create_task(self._look_up(hashed))
                look_up.add_done_callback(lambda task: task.cancelled() or task.exception())
                self._looking[hashed] = look_up
            return await asyncio.shield(look_up)

    async def _look_up(self, hashed: bytes) -> Client | None:
        match = or_(clients.c.key_hash == hashed, clients.c.previous_key_hash == hashed)
        query = select(clients).where(match, clients.c.revoked_at.is_(None))
        try:
            async with self._database.autocommit() as connection:
                row = (await connection.execute(query)).one_or_none()
        finally:
            del self._looking[hashed]
        client = Client(row.name, frozenset(row.scopes), frozenset(row.redirect_hosts)) if row else None
        if client is not None:
            self._seen[hashed] = True
            self._used.add(hashed)
        self._known[hashed] = client
        return client

    async def run(self) -> None:
        """Note every few seconds when keys were used last, until cancelled; nobody's call waits for it.

        To the minute: whoever rotates sees whether the old key is still in use.
        """
        while True:
            await asyncio.sleep(REMEMBERED_SECONDS)
            used, self._used = self._used, set()
            try:
                for hashed in used:
                    await self._note_use(hashed)
            except UNAVAILABLE as exc:
                # A database that is full or read-only still says who calls.
                self._used |= used
                log.warning("when keys were used could not be noted", error=type(exc).__name__)

    async def _note_use(self, hashed: bytes) -> None:
        async with self._database.autocommit() as connection:
            for hash_, used_at in _KEYS:
                stale = or_(used_at.is_(None), used_at < func.now() - _USED_EVERY)
                await connection.execute(update(clients).where(hash_ == hashed, stale).values({used_at: func.now()}))

    async def add(
        self,
        name: str,
        *,
        webhook_url: str | None = None,
        scopes: Sequence[str] = tuple(Scope),
        redirect_hosts: Sequence[str] = (),
        key: str | None = None,
    ) -> Credentials:
        """Make a client; raises `ClientError` where the name is taken. `key` is for `kpayd dev`, which keeps one."""
        key = key or new_key()
        made = Credentials(name, key, new_webhook_secret(), list(scopes))
        values: dict[str, Any] = {"name": name, "key_hash": _hash(key), "scopes": made.scopes}
        values |= {"webhook_url": webhook_url, "redirect_hosts": list(redirect_hosts)}
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(clients).values(**values, webhook_secret=made.webhook_secret))
                await _note(connection, name, "added")
        except IntegrityError as exc:
            raise ClientError(f"there is a client {name!r} already") from exc
        return made

    async def all(self) -> Sequence[Row]:
        """Return every client, revoked ones too, by name."""
        async with self._database.autocommit() as connection:
            return (await connection.execute(select(clients).order_by(clients.c.name))).all()

    async def history(self, name: str) -> Sequence[Row]:
        """Return what was done to a client, oldest first."""
        query = select(client_events).where(client_events.c.client == name).order_by(client_events.c.id)
        async with self._database.autocommit() as connection:
            return (await connection.execute(query)).all()

    async def rotate(self, name: str, *, key: bool = True, secret: bool = True, at_once: bool = False) -> Credentials:
        """Give a client a new key and a new webhook secret, or one of them. Raises `ClientError`.

        The ones before stay valid until the next rotation; `at_once` ends them now.
        """
        fresh = new_key() if key else ""
        values: dict[str, Any] = {}
        if fresh:
            before = (null(), null()) if at_once else (clients.c.key_hash, clients.c.key_used_at)
            values |= dict(zip(("previous_key_hash", "previous_key_used_at"), before, strict=True))
            values |= {"key_hash": _hash(fresh), "key_used_at": null()}
        if secret:
            values |= {"previous_webhook_secret": null() if at_once else clients.c.webhook_secret}
            values |= {"webhook_secret": new_webhook_secret()}
        what = " and ".join(name for name, chosen in (("key", key), ("webhook secret", secret)) if chosen)
        row = await self._change(name, values, "rotated", f"{what}, the old ended at once" if at_once else what)
        return Credentials(name, fresh, row.webhook_secret, row.scopes)

    async def notify_at(self, name: str, url: str | None) -> None:
        """Send a client's notifications to `url` from now on, also after they were disabled; None turns them off.

        Raises `ClientError`.
        """
        off = clients.c.webhook_url.is_(None)
        values = {
            "webhook_url": url,
            "webhook_since": case((off, func.now()), else_=clients.c.webhook_since),
            **dict.fromkeys(("webhook_disabled_at", "webhook_failing_since", "webhook_paused_until"), null()),
        }
        await self._change(name, values, "webhook_set" if url else "webhook_removed")

    async def redirect_to(self, name: str, hosts: Sequence[str]) -> None:
        """Let payments from now on send payers to these hosts only; none of them means anywhere. Raises `ClientError`.

        Payments that were started before still send their payers where they were told to.
        """
        detail = " ".join(hosts) or "any"
        await self._change(name, {"redirect_hosts": list(hosts)}, "redirect_hosts_set", detail)

    async def revoke(self, name: str) -> None:
        """End a client's keys for good; its payments stay. Raises `ClientError`."""
        await self._change(name, {"revoked_at": func.now()}, "revoked")

    async def _change(self, name: str, values: Mapping[str, Any], what: str, detail: str | None = None) -> Row:
        statement = update(clients).where(clients.c.name == name, clients.c.revoked_at.is_(None))
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement.values(values).returning(clients))).one_or_none()
            if row is None:
                raise ClientError(_no_client(name))
            await _note(connection, name, what, detail)
        return row


async def _note(connection: AsyncConnection, client: str, what: str, detail: str | None = None) -> None:
    await connection.execute(insert(client_events), {"client": client, "type": what, "detail": detail})
