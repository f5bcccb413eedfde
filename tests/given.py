"""The PostgreSQL that a run is given (`--database-url`) instead of starting one, and a pooler before it.

Databases are made and migrated on the server itself, and tests ask it their own questions; services and commands
reach them through the pooler, if there is one.
"""

import uuid
from collections.abc import Mapping
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from app.dev.postgres import EmbeddedPostgres

_pooled: dict[str, str] = {}
"""Where the pooler has a database, by its address on the server."""


class Given:
    """A server that was there before this run, whose user may make databases. Its names are this run's own."""

    def __init__(self, url: str, pooler: str | None) -> None:
        self.url = url
        self._pooler = pooler
        self._run = uuid.uuid4().hex[:8]
        self.made: dict[str, str] = {}
        """The names in the server of what this run calls so."""

    def url_of(self, database: str) -> str:
        """Return the address of one database of this run."""
        name = self.made.setdefault(database, f"{database}_{self._run}")
        url = urlsplit(self.url)._replace(path=f"/{name}").geturl()
        if self._pooler is not None:
            _pooled[url] = urlsplit(self._pooler)._replace(path=f"/{name}").geturl()
        return url


Postgres: TypeAlias = EmbeddedPostgres | Given
"""What the tests run on."""


def name_of(url: str) -> str:
    """Return the name of the database at `url`."""
    return urlsplit(url).path.removeprefix("/")


def upstream(server: Postgres) -> str | tuple[str, int]:
    """Return where a proxy reaches `server`: a Unix socket, or host and port."""
    if isinstance(server, EmbeddedPostgres):
        return str(server.socket)
    url = urlsplit(server.url)
    options = {name: values[-1] for name, values in parse_qs(url.query).items()}
    host, port = options.get("host") or url.hostname or "localhost", int(options.get("port") or url.port or 5432)
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def through(url: str, port: int) -> str:
    """Return the address of the database at `url` by way of a proxy on this machine."""
    who = urlsplit(url).netloc.rpartition("@")[0] or "postgres"
    return f"postgresql://{who}@127.0.0.1:{port}/{name_of(url)}"


def reaching(url: str) -> Mapping[str, str]:
    """Return the settings by which a service reaches the database at `url`: through the pooler, if there is one."""
    if url in _pooled:
        return {"DATABASE_URL": _pooled[url], "DATABASE_POOLED": "true"}
    return {"DATABASE_URL": url}
