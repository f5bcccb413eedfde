"""API clients: who may call, with which scopes. Keys are 256 random bits and kept as SHA-256 only."""

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cachetools import TTLCache
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from app.database import Database
from app.domain import Scope
from app.models import Row, clients

KEY_PREFIX = "kpk_"

REMEMBERED_SECONDS = 5.0
"""How long a process trusts a look-up: a revoked key dies within this time."""

_SEEN_SECONDS = 3_600.0


class ClientError(Exception):
    """An operator's request about a client that cannot be met; the message says why."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who calls, and what they may do."""

    name: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What is shown once, when a client is made or its key is rotated."""

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
    """The clients of this database. Looked up on every request, remembered for a few seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: TTLCache[bytes, Client | None] = TTLCache(1024, REMEMBERED_SECONDS, time.monotonic)
        self._looking: dict[bytes, asyncio.Task[Client | None]] = {}
        self._seen: TTLCache[bytes, bool] = TTLCache(1024, _SEEN_SECONDS, time.monotonic)

    def has_seen(self, key: str) -> bool:
        """Whether `key` was somebody's within the last hour: then it is no guess."""
        return _hash(key) in self._seen

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
        client = Client(row.name, frozenset(row.scopes)) if row else None
        if client is not None:
            self._seen[hashed] = True
        self._known[hashed] = client
        return client

    async def add(
        self, name: str, *, webhook_url: str | None = None, scopes: Sequence[str] = tuple(Scope), key: str | None = None
    ) -> Credentials:
        """Make a client; raises `ClientError` where the name is taken. `key` is for `kpayd dev`, which keeps one."""
        made = Credentials(name, key or new_key(), new_webhook_secret(), list(scopes))
        values = {"name": name, "key_hash": _hash(made.key), "scopes": made.scopes, "webhook_url": webhook_url}
        try:
            async with self._database.transaction() as connection:
                await connection.execute(insert(clients).values(**values, webhook_secret=made.webhook_secret))
        except IntegrityError as exc:
            raise ClientError(f"there is a client {name!r} already") from exc
        return made

    async def all(self) -> Sequence[Row]:
        """Return every client, revoked ones too, by name."""
        async with self._database.autocommit() as connection:
            return (await connection.execute(select(clients).order_by(clients.c.name))).all()

    async def rotate(self, name: str) -> Credentials:
        """Give a client a new key; the one before stays valid until the next rotation. Raises `ClientError`."""
        key = new_key()
        statement = (
            update(clients)
            .where(clients.c.name == name, clients.c.revoked_at.is_(None))
            .values(previous_key_hash=clients.c.key_hash, key_hash=_hash(key))
            .returning(clients)
        )
        async with self._database.transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        if row is None:
            raise ClientError(_no_client(name))
        return Credentials(name, key, row.webhook_secret, row.scopes)

    async def revoke(self, name: str) -> None:
        """End a client's keys for good; its payments stay. Raises `ClientError`."""
        statement = update(clients).where(clients.c.name == name, clients.c.revoked_at.is_(None))
        async with self._database.transaction() as connection:
            done = await connection.execute(statement.values(revoked_at=func.now()).returning(clients.c.name))
            if done.one_or_none() is None:
                raise ClientError(_no_client(name))
