"""Bring an empty database up by the migrations, then ask Alembic whether the models want anything else."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from app.dev.postgres import running

SCRIPTS = Path(sys.executable).parent


def main() -> None:
    """Stop at the first command that fails."""
    with tempfile.TemporaryDirectory(prefix="kpayd-schema-") as folder:
        Path(folder).chmod(0o755)  # Started by root, the server runs as somebody who must be able to walk in here.
        with running(Path(folder, "postgres")) as server:
            environment = {**os.environ, "KPAYD_DATABASE_URL": server.url}
            for command in (["kpayd", "migrate"], ["alembic", "check"]):
                if subprocess.run([SCRIPTS / command[0], *command[1:]], env=environment, check=False).returncode != 0:
                    raise SystemExit(f"{' '.join(command)} failed")


if __name__ == "__main__":
    main()
