"""A receiver of notifications for tests: a real HTTP server that keeps what it got and answers as it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook

from tests.support import Json

OK: tuple[int, dict[str, str]] = (200, {})


@dataclass(frozen=True)
class Got:
    """One POST: its headers by lower-case name, its body, and when it came."""

    headers: dict[str, str]
    body: bytes
    path: str
    at: float

    @property
    def id(self) -> str:
        """The event's id."""
        return self.headers["webhook-id"]

    @property
    def json(self) -> Json:
        """The body, read."""
        value: Json = json.loads(self.body)
        return value

    def verify(self, secret: str) -> Any:  # noqa: ANN401 - the library's own
        """Verify it as a receiver does; raises where it was not signed with `secret`."""
        return Webhook(secret).verify(self.body, self.headers)


Answer = Callable[[Got], tuple[int, dict[str, str]]]


@dataclass
class Receiver:
    """Where notifications arrive. `answer` may be changed at any time; `got` is in order of arrival."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answer: Answer = lambda _: OK

    def of(self, refid: str) -> list[Got]:
        """Return what came about one payment."""
        return [got for got in self.got if got.json["data"]["refid"] == refid]

    def types(self, refid: str) -> list[str]:
        """Return the types of what came about one payment."""
        return [got.json["type"] for got in self.of(refid)]


class Server(ThreadingHTTPServer):
    """A server that a burst may come to: with the five places of its base class TCP tries again after a second."""

    request_queue_size = 128


@contextmanager
def run_receiver(answer: Answer = lambda _: OK) -> Iterator[Receiver]:
    """Run a receiver on a free port of the loopback."""
    receiver = Receiver(answer=answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(headers, body, self.path, time.monotonic())
            receiver.got.append(got)
            status, more = receiver.answer(got)
            self.send_response(status)
            for name, value in {"content-length": "0", **more}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
