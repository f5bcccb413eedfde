"""The database's schema: bring it up, and judge whether it suits this code."""

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

ROOT = Path(__file__).parent.parent


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
    """Bring the database to the newest schema, as `alembic upgrade head` does (migrations/env.py).

    It then makes the months to come (app.months) and places the tables on a Citus cluster (app.cluster), which
    `alembic` by itself does not.
    """
    config = _config(url)
    config.attributes["complete"] = True
    command.upgrade(config, "head")
