"""A simulator in a thread, a listener that writes down its postbacks, and a caller who knows both."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import Any

import httpx2

from app.simulator import Config, make_server
from tests.receiver import Server

DELAY = 0.05
_numbers = count(1)


def until(done: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something is so; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@dataclass
class Postback:
    """What arrived at the listener."""

    content_type: str
    body: bytes
    at: float = field(default_factory=time.monotonic)


class Listener:
    """Keeps every POST under its path; answers 200, or the next status that `answers` has for that path."""

    def __init__(self) -> None:
        self.received: dict[str, list[Postback]] = defaultdict(list)
        self.answers: dict[str, list[int]] = {}
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                refid = self.path.removeprefix("/")
                listener.received[refid].append(Postback(self.headers["Content-Type"], body))
                statuses = listener.answers.get(refid)
                self.send_response(statuses.pop(0) if statuses else 200)
                self.end_headers()
                self.wfile.write(b'{"reply":"OK"}')

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Listener"]:
        """Listen."""
        thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        thread.start()
        yield self
        self.server.shutdown()
        self.server.server_close()
        thread.join()


class Kpay:
    """A caller of one running simulator."""

    def __init__(self, url: str, listener: Listener) -> None:
        self.url = url
        self.listener = listener
        self.http = httpx2.Client(base_url=url, auth=("kpay", "kpay"), timeout=5.0)

    def order(self, number: str = "000", /, **changes: object) -> dict[str, Any]:
        """Write a payment request as in the guide, for a new refid, with the magic number; None takes a member out."""
        refid = f"R{next(_numbers)}"
        order = {
            "msisdn": f"250780000{number}",
            "email": "ikaneza@gmail.com",
            "details": "order",
            "refid": refid,
            "amount": 4200,
            "currency": "RWF",
            "cname": "KANEZA",
            "cnumber": "0788123457",
            "pmethod": "momo",
            "retailerid": "02",
            "returl": f"{self.listener.url}/{refid}",
            "redirecturl": "https://www.iduka.rw",
            "bankid": "63510",
            **changes,
        }
        return {name: value for name, value in order.items() if value is not None}

    def card_order(self, **changes: object) -> dict[str, Any]:
        """Write a card payment's request whose payer acts at the checkout page."""
        return self.order(**{"msisdn": "250788312934", "pmethod": "cc", "bankid": "000", **changes})

    def token_order(self, token: str, number: str | None = None, /, **changes: object) -> dict[str, Any]:
        """Write a `tokenpay` as in the guide; with `number`, a magic one."""
        msisdn = f"250780000{number}" if number else "250788312934"
        own = {"action": "tokenpay", "token": token, "cvv": "123", "msisdn": msisdn, "pmethod": "tokenpay"}
        return self.order(**{**own, "bankid": None, "currency": None, "redirecturl": None, **changes})

    def send(self, message: object, timeout: float = 5.0) -> httpx2.Response:
        """Send a message to K-Pay."""
        return self.http.post("/", json=message, timeout=timeout)

    def checkstatus(self, **about: object) -> dict[str, Any]:
        """Ask K-Pay for a status."""
        answer: dict[str, Any] = self.send({"action": "checkstatus", **about}).json()
        return answer

    def truth(self, refid: str) -> dict[str, Any]:
        """Look into the ledger."""
        payment: dict[str, Any] = self.http.get(f"/_simulator/payments/{refid}").json()
        return payment

    def settle(self, refid: str, **how: object) -> httpx2.Response:
        """Play the payer."""
        return self.http.post(f"/_simulator/payments/{refid}/settle", json=how)

    def checkout(self, order: dict[str, Any]) -> str:
        """Ask for a payment, and give the address of its page."""
        url: str = self.send(order).json()["url"]
        return url

    def write(self, url: str, **fields: str) -> httpx2.Response:
        """Send a page's form: a good card, but for `fields`; press Pay, unless `do` is another button."""
        card = {"number": "5555 5555 5555 4444", "expiry": "12/49", "cvv": "123", "do": "pay"}
        return self.http.post(url, data=card | fields)

    def invite(self, msisdn: str, /, **changes: object) -> dict[str, Any]:
        """Ask for an address to save a card at, as in the guide; None takes a member out."""
        asked = {
            "msisdn": msisdn,
            "email": "ikaneza@gmail.com",
            "cusname": "Kaneza Innocent",
            "action": "addtoken",
            "refid": "YR1600116349",
            **changes,
        }
        answer: dict[str, Any] = self.send({name: value for name, value in asked.items() if value is not None}).json()
        return answer

    def saved(self, msisdn: str) -> list[dict[str, Any]]:
        """List a client's saved cards."""
        asked = {"msisdn": msisdn, "action": "tokenlist", "refid": "YR1600116349"}
        cards: list[dict[str, Any]] = self.send(asked).json()["reply"]
        return cards

    def save(self, number: str = "5555555555554444") -> str:
        """Save a card for a new client, and give its token."""
        msisdn = f"2507{next(_numbers):08}"
        assert self.write(self.invite(msisdn)["url"], number=number).status_code == 303
        token: str = self.saved(msisdn)[0]["token"]
        return token

    def behave(self, **how: object) -> httpx2.Response:
        """Change the gateway's mood."""
        return self.http.post("/_simulator/behave", json=how)

    def postbacks(self, refid: str, number: int = 1) -> list[Postback]:
        """Wait until so many postbacks have arrived, and been answered."""
        until(lambda: len(self.listener.received[refid]) >= number)
        until(lambda: all(sent["status"] for sent in self.truth(refid)["postbacks"]))
        return self.listener.received[refid]


@contextmanager
def running(config: Config, listener: Listener) -> Iterator[Kpay]:
    """Run a simulator in a thread, on a free port."""
    server = make_server(config, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    kpay = Kpay(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", listener)
    try:
        yield kpay
    finally:
        kpay.http.close()
        server.should_exit = True
        thread.join()
