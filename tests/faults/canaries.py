"""Canaries: values that can be found again, one in every secret and every personal field, and all that was ever said.

`canary_play.driven` plays them through a service of their own, along every way that succeeds and every way that fails.
"""

import base64
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

import httpx2

from app.dev.postgres import binaries
from app.macs import Macs
from app.simulator import Config, make_server
from tests.faults.conftest import Server
from tests.support import Json, eventually, new_refid, payment, query


class Place(StrEnum):
    """Where a value may turn up."""

    LOG = "the service's log at DEBUG, as JSON"
    CONSOLE = "the log for a console"
    DATABASE = "a dump of the database"
    POSTGRES = "PostgreSQL's own log"
    ANSWERS = "answers that are errors, and the pages that are open to all"
    COMMANDS = "what the commands print for people"
    PROCESSES = "the list of processes"


def _canary(name: str) -> str:
    return f"canary-{name}-5c1e".ljust(40, "z")


TYPED = {name: _canary(name) for name in ("cvv", "token", "wrong-key", "wrong-mac")}
"""What somebody sends though nobody should."""
HELD = {
    name: _canary(name)
    for name in (
        "gateway-username",
        "gateway-password",
        "gateway-key",
        "secret-key",
        "old-secret-key",
        "database-password",
    )
}
"""What a deployment's settings hold."""
PERSONAL = {
    "msisdn": "250788735917",
    "cnumber": "0788735918",
    "payaccount": "4007391826405",
    "email": "canary.email.5c1e@example.rw",
    "cname": "CANARY CNAME 5C1E",
    "details": "canary details 5c1e",
    "orderid": "canary-orderid-5c1e",
    "metadata": "canary-metadata-5c1e",
    "redirecturl": "canary-redirecturl-5c1e",
    "idempotency-key": "canary-idempotency-key-5c1e",
}
"""What a caller or K-Pay says of a payer and a payment."""
CVVS = {
    "success": "0917",
    "decline": "0836",
    "reset": "0752",
    "timeout": "0694",
    "html-500": "0581",
    "error": "0473",
    "refused": "0368",
    "database-down": "0259",
    "database-lost": "0147",
    "kill": "0985",
    "conflict": "0873",
    "repetition": "0761",
}
"""A valid `cvv` for each way that a payment by saved card can go. No process, port or year begins with 0."""
TOKENS = {path: f"canary-{path}-{cvv}-5c1e-b95b8d79bc85" for path, cvv in CVVS.items()}
"""A valid `token` for each of these ways."""
MARK = "0246"
"""Four digits that are no secret: they stand in the refids, and K-Pay repeats them, so that the search can be tried."""
KEYS = Macs([HELD["secret-key"]]), Macs([HELD["old-secret-key"]])


@dataclass
class Scene:
    """What was said where, and the secrets that were made on the way."""

    words: dict[Place, str] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)
    statuses: set[int] = field(default_factory=set)
    readable_by: dict[int, int] = field(default_factory=dict)
    """Of each process of the service: the rights of its environment."""
    answers_by_card: str = ""
    """All answers about payments by saved card, those that are no errors too."""
    sent_by_card: list[Json] = field(default_factory=list)
    """What K-Pay got of payments by saved card."""

    def places(self, name: str) -> set[Place]:
        """Return where the canaries of that name are, however they are written."""
        needles = self.made.get(name) or [(TYPED | HELD | PERSONAL)[name]]
        forms = {form for needle in needles for form in _written(needle.removeprefix("250"))}
        return {place for place, words in self.words.items() if any(form in words for form in forms)}

    def places_alone(self, needle: str) -> set[str]:
        """Return where `needle` stands by itself, no letter or digit beside it, also in bytes that are dumped in hex.

        So a tid or a fraction of a second that happens to hold four digits is no find.
        """
        alone = re.compile(rf"(?<![0-9A-Za-z.]){re.escape(needle)}(?![0-9A-Za-z])")
        everywhere: dict[str, str] = dict(self.words) | {"answers by card": self.answers_by_card}
        return {place for place, words in everywhere.items() if alone.search(f"{words}\n{_in_hex(words)}")}


def _in_hex(words: str) -> str:
    found = re.findall(r"\\x((?:[0-9a-f]{2})+)", words)
    return "\n".join(bytes.fromhex(each).decode(errors="replace") for each in found)


def _written(needle: str) -> set[str]:
    raw = needle.encode()
    return {needle, quote(needle, safe=""), raw.hex(), base64.b64encode(raw).decode().rstrip("=")}


def ordered(number: str = PERSONAL["msisdn"], **changes: object) -> Json:
    """Return a request for a payment with every canary that a payment can hold."""
    held = {name: PERSONAL[name] for name in ("email", "cname", "cnumber", "details")}
    redirecturl = f"https://shop.example.rw/done?{PERSONAL['redirecturl']}"
    held |= {"redirecturl": redirecturl, "refid": new_refid()}
    return payment(number, **held | {"metadata": {"a": PERSONAL["metadata"]}} | changes)


@contextmanager
def processes_seen(scene: Scene) -> Iterator[None]:
    """Look at the list of processes a few times a second, as everybody on the machine can."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        scene.words[Place.PROCESSES] = "\n".join(seen)


def dump(server: Server) -> str:
    """Return the whole database as text; bytes in it are written in hex."""
    command = [str(binaries() / "pg_dump"), "--dbname", server.direct]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def with_password(server: Server) -> str:
    """Let a user `kpayd` in by password alone, and return the database's address for it."""
    word = HELD["database-password"]
    query(server.direct, f"CREATE ROLE kpayd LOGIN PASSWORD '{word}'")
    query(server.direct, "GRANT pg_read_all_data, pg_write_all_data TO kpayd")
    (row,) = query(server.direct, "SHOW hba_file")
    rules = Path(row["hba_file"])
    rules.write_text(f"local all kpayd scram-sha-256\n{rules.read_text()}")
    query(server.direct, "SELECT pg_reload_conf()")
    return f"postgresql://kpayd:{word}@127.0.0.1:{server.proxy.port}/kpayd"


@contextmanager
def running_kpay(account: Config) -> Iterator[str]:
    """Run a K-Pay with an account of its own until the block ends; yields its address."""
    server = make_server(account, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def behave(kpay: str, **how: object) -> None:
    """Change the whole K-Pay: down, refuse_credentials."""
    httpx2.post(f"{kpay}/_simulator/behave", json=how, trust_env=False).raise_for_status()
