"""The database's schema: bring it up, and judge whether it suits this code."""

from dataclasses import dataclass
from pathlib import Path

import stamina
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError

from app.database import sqlstate

ROOT = Path(__file__).parent.parent

_TAKEN = ("55P03", "40P01")  # lock_timeout, deadlock


def _config(url: str | None = None) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.attributes["database_url"] = url
    return config


@dataclass(frozen=True, slots=True)
class Schema:
    """The revisions that this code knows, newest first."""

    revisions: tuple[str, ...]

    @classmethod
    def of_this_code(cls) -> "Schema":
        """Read the migrations that came with this code."""
        scripts = ScriptDirectory.from_config(_config())
        return cls(tuple(script.revision for script in scripts.walk_revisions()))

    def judge(self, version: str | None) -> str:
        """Return `current`, `newer` (this code must run on the schema after), or what to do about an older one."""
        if version == self.revisions[0]:
            return "current"
        if version is not None and version not in self.revisions:
            return "newer"
        return f"{version or 'missing'}, this version needs {self.revisions[0]}: run kpayd migrate"


def migrate(url: str) -> None:
    """Bring the database to the newest schema. Gives up a lock that is not had at once and tries again for minutes."""

    def taken(exc: Exception) -> bool:
        return isinstance(exc, DBAPIError) and sqlstate(exc) in _TAKEN

    for attempt in stamina.retry_context(on=taken, attempts=100, wait_initial=0.5, wait_max=3, timeout=300):
        with attempt:
            command.upgrade(_config(url), "head")
