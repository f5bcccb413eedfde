"""A server in K-Pay's place that lies where it is told to, and passes on the rest."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Lock, Thread

import httpx2

from tests.receiver import Server
from tests.support import Json

EVERY = "*"
NOT_FOUND: Json = {
    "tid": "",
    "refid": "",
    "momtransactionid": "",
    "statusid": "611",
    "statusdesc": "Transaction not found",
}


@dataclass(frozen=True)
class Lie:
    """An answer that is not the simulator's."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


def lie(status: int = 200, **members: object) -> Lie:
    """Return an answer in JSON."""
    return Lie(json.dumps(members).encode(), status)


@dataclass
class Liar:
    """A server in K-Pay's place: says what it is told to say of a refid (or of `EVERY`), else what K-Pay says."""

    behind: str
    port: int = 0
    lies: dict[tuple[str, str], Lie] = field(default_factory=dict)
    heard: list[tuple[str, str]] = field(default_factory=list)
    """Action and refid of all that came."""
    _lock: Lock = field(default_factory=Lock)

    def answer(self, body: bytes, authorization: str) -> Lie:
        """Answer one call."""
        order = json.loads(body)
        action, refid = str(order["action"]), str(order["refid"])
        with self._lock:
            self.heard.append((action, refid))
            told = self.lies.get((action, refid)) or self.lies.get((action, EVERY))
        return told or self._pass_on(body, authorization)

    def _pass_on(self, body: bytes, authorization: str) -> Lie:
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        said = httpx2.post(f"{self.behind}/", content=body, headers=headers, trust_env=False, timeout=20)
        return Lie(said.content, said.status_code, (("Content-Type", said.headers.get("content-type", "")),))

    def asked(self, refid: str) -> int:
        """Return how often it was asked what became of a payment."""
        return self.heard.count(("checkstatus", refid))


@contextmanager
def lying(behind: str) -> Iterator[Liar]:
    """Run a liar before a K-Pay."""
    liar = Liar(behind)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said = liar.answer(body, self.headers.get("Authorization", ""))
            self.send_response(said.status)
            for name, value in (*said.headers, ("Content-Length", str(len(said.body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        def do_GET(self) -> None:
            liar.heard.append(("GET", self.path))
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            """Say nothing of what came."""

    with Server(("127.0.0.1", 0), Handler) as server:
        liar.port = server.server_address[1]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield liar
        finally:
            server.shutdown()
            thread.join(5)
