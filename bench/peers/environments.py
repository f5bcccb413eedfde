"""Environments of the peers: made once under `.kpayd/bench/NAME`, and again when their list of versions changes."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.settings import environment
from bench.figures import BenchError

SOURCES = Path(__file__).parent
_HOME = SOURCES.parent.parent / ".kpayd" / "bench"
_SECONDS = 600


def command(words: Sequence[str | Path], folder: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed. Raises `BenchError` with its last words where it fails."""
    try:
        done = subprocess.run(
            words,
            check=False,
            cwd=folder,
            env=environment() | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BenchError(f"{Path(words[0]).name} cannot be run: {exc}") from exc
    if done.returncode != 0:
        raise BenchError(f"{Path(words[0]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def python(name: str, *, least: tuple[int, int] = (3, 11)) -> Path:
    """Return the folder of programs of a peer's Python environment, which is made where it is not there."""
    home, wanted = _HOME / name, (SOURCES / name / "requirements.txt").read_text()
    if not _is_made(home, wanted):
        shutil.rmtree(home, ignore_errors=True)
        command([_interpreter(least), "-m", "venv", home], SOURCES)
        command([home / "bin" / "pip", "install", "-q", "-r", SOURCES / name / "requirements.txt"], SOURCES)
        (home / "made").write_text(wanted)
    return home / "bin"


def node(name: str) -> Path:
    """Return the folder of a peer's Node program, beside the packages it needs."""
    if shutil.which("npm") is None:
        raise BenchError("npm is not installed: apt-get install nodejs npm")
    home, wanted = _HOME / name, (SOURCES / name / "package.json").read_text()
    if not _is_made(home, wanted):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text(wanted)
        command(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel", "error"], home)
        (home / "made").write_text(wanted)
    for source in (SOURCES / name).glob("*.cjs"):
        shutil.copy(source, home)
    return home


def versions() -> str:
    """Return what the peers are, exactly, in one line."""
    words = ("fastapi==", "fastapi-getpaid==", "python-getpaid-core==", "dj-stripe==", "Django==", "gunicorn==")
    lines = {
        line
        for path in SOURCES.glob("*/requirements.txt")
        for line in path.read_text().splitlines()
        if line.startswith((*words, "SQLAlchemy==", "uvicorn=="))
    }
    packages = [line.strip().rstrip(",") for line in (SOURCES / "stripesync" / "package.json").read_text().splitlines()]
    lines |= {line.replace('"', "").replace(": ", "==") for line in packages if '": "' in line}
    return ", ".join(sorted(lines, key=str.lower)).replace("==", " ")


def _is_made(home: Path, wanted: str) -> bool:
    return (home / "made").is_file() and (home / "made").read_text() == wanted


def _interpreter(least: tuple[int, int]) -> str:
    """Return a Python that is new enough. Raises `BenchError` where there is none."""
    for candidate in _candidates(least):
        check = [candidate, "-c", f"import sys, venv; sys.exit(sys.version_info < {least})"]
        if subprocess.run(check, check=False, capture_output=True).returncode == 0:
            return candidate
    raise BenchError(f"it needs Python {least[0]}.{least[1]}, which is not installed")


def _candidates(least: tuple[int, int]) -> Iterator[str]:
    if sys.version_info[:2] >= least:
        yield sys.executable
    minors = range(least[1], least[1] + 5)
    yield from (path for minor in minors if (path := shutil.which(f"python3.{minor}")) is not None)
    for minor in minors:
        yield from (str(path) for path in (Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
