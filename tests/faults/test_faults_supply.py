"""What the service is made of and runs in: the lock, known holes, secrets in the tree, the container's rights."""

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # it ships no types
from packaging.requirements import Requirement

from app.dev.laptop import free_port
from app.settings import environment
from tests.faults.conftest import Server
from tests.support import Process, Service, Simulator, answers, settings

ROOT = Path(__file__).parent.parent.parent
GIT = shutil.which("git") or "git"
NO_PROXY = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def security(*arguments: str, root: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run CI's own command over a tree."""
    return subprocess.run(
        ["/bin/bash", root / ".ci" / "security.sh", *arguments],
        check=False,
        env=os.environ | {"VENV": str(Path(sys.executable).parent.parent)} | NO_PROXY,
        capture_output=True,
        text=True,
        timeout=100,
    )


def locked(name: str = "run") -> dict[str, tuple[str, str]]:
    """Return what a lock pins: of each package its version and its hashes."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [
        re.fullmatch(r"([a-z0-9.-]+)(?:\[[a-z,]+\])?==(\S+)(?: ; [^-]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})*)\s*", pin)
        for pin in pins
    ]
    assert all(found), [pin for pin, match in zip(pins, found, strict=True) if match is None]
    return {match[1]: (match[2], match[3]) for match in found if match}


def test_fault_62_the_lock_is_hashed_and_complete() -> None:
    """Everything that production installs is pinned to one version with its hashes, and no line names an address."""
    pins = locked()
    assert len(pins) > 30
    assert [name for name, (_, hashes) in pins.items() if "sha256" not in hashes] == []
    asked: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    seen: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "asyncio")
        )
        if name not in seen and applies:
            seen.add(name)
            assert pins[name][0] == metadata.version(name), name
            asked += metadata.requires(name) or []
    assert seen > {"fastapi", "sqlalchemy", "asyncpg", "starlette"}
    for lock in (ROOT / "requirements").glob("*.txt"):
        assert "://" not in lock.read_text()


def test_fault_62_the_image_installs_by_hash() -> None:
    """The image installs nothing but what the lock pins, each file checked against its hash."""
    lines = re.split(r"&&|\n(?=[A-Z])", (ROOT / "Dockerfile").read_text().replace("\\\n", " "))
    installs = [line for line in lines if re.search(r"\binstall\b", line) and "pip" in line]
    assert len(installs) == 3
    assert [line for line in installs if "--require-hashes" not in line and "--no-index" not in line] == []


def test_fault_62_a_planted_secret_is_found(tmp_path: Path) -> None:
    """A key or password in any tracked file fails the checks, which name the file and the line and not the secret.

    The copy is otherwise as it is tracked, so that this tells, too, that nothing else is found in it.
    """
    listed = subprocess.run([GIT, "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("NOT SHOWN: this tree is no git clone, so nothing tells which files are tracked")
    for name in {*listed.stdout.split("\0"), ".secrets.baseline", ".ci/security.sh"} - {""}:
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    lines = len((tmp_path / "app" / "jitter.py").read_text().splitlines())
    key, word = "AKIA" + "QYLPMN5HHHFPZAM2", "Umuganura" + "-2391-Kigali"
    with (tmp_path / "app" / "jitter.py").open("a") as module:
        module.write(f'REGION_KEY = "{key}"\n')
    (tmp_path / "deploy.env").write_text(f"KPAYD_RETAILERID=02\nKPAYD_GATEWAY_PASSWORD={word}\n")
    (tmp_path / "docs" / "call.md").write_text(f"curl https://kpay:{word}@pay.example.rw/\n")
    for command in (["init", "--quiet"], ["add", "--all", "--force"]):
        subprocess.run([GIT, *command], cwd=tmp_path, check=True, capture_output=True)
    done = security("secrets", root=tmp_path)
    assert done.returncode == 1, done.stderr
    places = re.findall(r"Location: +(\S+)", done.stdout + done.stderr)
    assert set(places) == {f"app/jitter.py:{lines + 1}", "deploy.env:2", "docs/call.md:1"}
    assert key not in done.stdout + done.stderr
    assert word not in done.stdout + done.stderr


@contextmanager
def vulnerability_service(holes: Mapping[str, str]) -> Iterator[str]:
    """Run a service that knows of holes, by package; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = asked["package"] | {"ecosystem": "PyPI"}
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            hole = {
                "id": holes.get(package["name"]),
                "summary": "x",
                "affected": [{"package": package, "ranges": ranges}],
            }
            body = json.dumps({"vulns": [hole]} if hole["id"] else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("holes", [{"starlette": "PYSEC-2026-1"}, {}], ids=["a_hole", "none"])
def test_fault_62_a_known_hole_is_red(holes: Mapping[str, str], tmp_path: Path) -> None:
    """A package with a known hole fails the checks, by its name, its version and the version that mends it."""
    with vulnerability_service(holes) as url:
        asked = ("--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(tmp_path))
        done = security("audit", *asked)
    assert done.returncode == bool(holes), done.stderr
    if holes:
        assert f"starlette {locked()['starlette'][0]} has PYSEC-2026-1; fixed in 999" in done.stderr
    else:
        # Those that only another system installs are left out.
        told = re.fullmatch(r"audit: (\d+) packages, no known vulnerability\n", done.stdout)
        assert told
        assert len(locked()) - 5 < int(told[1]) <= len(locked())


def test_fault_62_an_audit_that_could_not_run_says_so(tmp_path: Path) -> None:
    """Where nobody can be asked for known holes, the checks say aloud that nothing was audited, never all is well."""
    nobody = f"http://127.0.0.1:{free_port()}/"
    asked = ("--vulnerability-service", "osv", "--osv-url", nobody, "--cache-dir", str(tmp_path))
    done = security("audit", *asked)
    assert "NOTHING WAS AUDITED" in done.stderr
    assert "no known vulnerability" not in done.stdout
    assert done.returncode == 0


def test_fault_62_the_bill_of_materials_is_whole(tmp_path: Path) -> None:
    """The bill of materials lists every package that production installs, in its version."""
    done = security("sbom", str(tmp_path / "sbom.json"))
    assert done.returncode == 0, done.stderr
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert {each["name"]: each["version"] for each in bill["components"]} == {
        name: version for name, (version, _) in locked().items()
    }


# --- the container -------------------------------------------------------------------------------------------


def test_fault_61_the_image_is_nobodys_root() -> None:
    """The image runs by a numbered user without rights, holds no secret, and passes the linter."""
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    text = (ROOT / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^(?:ADD|ARG|VOLUME)\b.*", text, re.MULTILINE) == []
    assert re.findall(r"\b(KPAYD_\w+|\w*(?:PASSWORD|SECRET|TOKEN)\w*)=", text) == []
    assert [base for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE) if not re.search(r":\d", base)] == []


def composed() -> dict[str, Any]:
    """Return the services of docker-compose.yml, their anchors resolved."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def test_fault_61_the_containers_may_do_nothing_more() -> None:
    """Each container of ours has a read-only root, no capability, no way to gain one, and is published on loopback."""
    ours = {name: each for name, each in composed().items() if each["image"] == "kpayd"}
    assert ours.keys() == {"kpayd", "migrate", "simulator", "play"}
    for name, each in ours.items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["tmpfs"] == "/tmp", name  # noqa: S108 - the container's own
        assert not each.keys() & {"user", "cap_add", "privileged", "volumes", "devices", "pid", "ipc"}, name
        assert each.get("network_mode", "service:kpayd") == "service:kpayd", name
        assert all(str(port).startswith("127.0.0.1:") for port in each.get("ports", [])), name
    assert "ports" not in composed()["postgres"]
    assert "privileged" not in composed()["postgres"]


def test_fault_61_compose_holds_no_secret() -> None:
    """What docker-compose.yml sets by itself is the demo's: every secret comes from the environment or a `.env`."""
    values = {name: str(value) for each in composed().values() for name, value in each.get("environment", {}).items()}
    secrets = {name: value for name, value in values.items() if re.search(r"PASSWORD|SECRET|DATABASE_URL", name)}
    assert len(secrets) == 4
    for name, value in secrets.items():
        assert re.search(r"\$\{\w+:-(demo-only[-a-z]*|kpay)\}", value), name


IMPORTS = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{sysconfig.get_path('purelib')}",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def unprivileged() -> dict[str, Any]:
    """Return how to start a process without rights; as root, as nobody."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def open_interpreter(who: Mapping[str, Any]) -> str | None:
    """Return an interpreter that a process without rights may run, and that can import the service, or None."""
    for each in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        command = [each, "-c", "import app.main, sqlalchemy, asyncpg, pydantic_core"]
        try:
            done = subprocess.run(
                command, check=False, cwd="/", env=environment() | IMPORTS, capture_output=True, **who
            )
        except OSError:
            continue
        if done.returncode == 0:
            return each
    return None


def test_fault_61_the_service_needs_no_rights(
    own_postgres: Server, simulator: Simulator, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The service does its work as a user without rights, in a folder in which it can write nothing."""
    folder = tmp_path_factory.mktemp("unwritable")
    folder.chmod(0o555)
    who = unprivileged()
    interpreter = open_interpreter(who)
    if interpreter is None:
        pytest.skip("NOT SHOWN: no interpreter here that nobody may run has this environment's version")
    port = free_port()
    env = environment() | settings(own_postgres.url, f"{simulator.url}/", port, {"CHECK_SCHEDULE": "0.3"})
    env |= IMPORTS | {"HOME": "/nonexistent"}
    log = tmp_path / "log"
    with log.open("wb") as words:
        command = [interpreter, "-m", "app", "serve", "--port", str(port)]
        child = subprocess.Popen(command, env=env, cwd=folder, stdout=words, stderr=words, **who)
    process = Process(child, log)
    try:
        answers(process, f"http://127.0.0.1:{port}/healthz")
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert set(re.findall(r"^Cap(?:Prm|Eff|Inh):\s+(\w+)$", status, re.MULTILINE)) == {"0" * 16}
        assert "\nUid:\t0\t" not in status
        service = Service(process, f"http://127.0.0.1:{port}", own_postgres.url, env)
        with service.http:
            assert service.read(service.start()["refid"], wait=20)["status"] == "succeeded"
        assert process.stop() == 0
        assert "Traceback" not in process.words
    finally:
        child.kill()
        child.wait()
