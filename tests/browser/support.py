"""What the browser's tests need beside the service and K-Pay: a merchant's site, and looks at how a payment went."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Page, Request, expect

from app.macs import RETURN, Macs
from app.simulator.cards import ACCEPTED
from tests.receiver import Server
from tests.support import SECRET_KEY, Json, Service, Simulator

NEVER_ACTS = "250780000005"
"""A phone whose owner waits for the test to press a button; a card payer waits whatever the number."""
CARD = ACCEPTED[0].spaced
DONE = "/done"
THANKS = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>Shop</title><link rel="icon" href="data:,"><main><h1>Thank you</h1></main>'
)


@dataclass
class Merchant:
    """A merchant's site, and the address of each request that it got, in order."""

    url: str = ""
    got: list[str] = field(default_factory=list)
    pause: float = 0.0
    """Seconds that its page takes."""

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Let its page take its time."""
        self.pause = seconds
        try:
            yield
        finally:
            self.pause = 0.0

    def landed(self, refid: str) -> list[dict[str, str]]:
        """Return the queries with which payers of this payment came to the merchant's page."""
        queries = [dict(parse_qsl(urlsplit(each).query)) for each in self.got if urlsplit(each).path == DONE]
        return [query for query in queries if query.get("refid") == refid]


@contextmanager
def run_merchant() -> Iterator[Merchant]:
    """Run a merchant's site on a free port of the loopback; every page of it says thank you."""
    merchant = Merchant()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5  # a browser opens connections that it may never use

        def do_GET(self) -> None:
            merchant.got.append(self.path)
            time.sleep(merchant.pause)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(THANKS)))
            self.end_headers()
            self.wfile.write(THANKS.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with Server(("127.0.0.1", 0), Handler) as server:
        merchant.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield merchant
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Shop:
    """A merchant that is paid over the service, and what is known of its payments on all sides."""

    service: Service
    simulator: Simulator
    merchant: Merchant

    def sell(self, pmethod: str = "momo", number: str = NEVER_ACTS, **changes: object) -> Json:
        """Start a payment whose payer is to come back to order 7."""
        back = f"{self.merchant.url}{DONE}?order=7"
        return self.service.start(number, **({"pmethod": pmethod, "redirecturl": back} | changes))

    def link(self, refid: str) -> str:
        """Return the payer's way back that K-Pay was given."""
        return f"{self.service.url}/kpay/return/{refid}/{Macs([SECRET_KEY]).make(RETURN, refid)}"

    def comes_home(self, page: Page, refid: str, status: str, *, times: Sequence[int] = (1,)) -> None:
        """Wait until a tab shows the merchant's page of this order, with how it ended, and that it did so `times`."""
        page.wait_for_url(f"{self.merchant.url}{DONE}?order=7&refid={refid}&status={status}")
        expect(page.get_by_role("heading")).to_have_text("Thank you")
        landed = self.merchant.landed(refid)
        assert landed == [{"order": "7", "refid": refid, "status": status}] * len(landed)
        assert len(landed) in times

    def ended(self, refid: str, status: str, *, postbacks: int = 1) -> Json:
        """Return a payment that is over as it should be: K-Pay was asked for the money once, and told it so often."""
        payment = self.service.read(refid, wait=10)
        assert payment["status"] == status
        known = self.simulator.ledger(refid)
        assert known is not None
        assert known["requests"] == 1
        assert [post["status"] for post in known["postbacks"]] == [200] * postbacks
        assert known["statusid"] == ("01" if status == "succeeded" else "02" if status == "failed" else "03")
        return payment

    def still_open(self, refid: str) -> None:
        """Assert that a payment is pending on both sides, and that K-Pay was asked for the money once."""
        assert self.service.read(refid)["status"] == "pending"
        known = self.simulator.ledger(refid)
        assert known is not None
        assert (known["requests"], known["statusid"], known["postbacks"]) == (1, "03", [])


def fill_in(page: Page, number: str = CARD, expiry: str = "09/31", cvv: str = "123") -> None:
    """Type a card into K-Pay's form."""
    page.get_by_label("Card number").fill(number)
    page.get_by_label("Expiry").fill(expiry)
    page.get_by_label("CVV").fill(cvv)


def press(page: Page, name: str) -> None:
    """Click a button."""
    page.get_by_role("button", name=name, exact=True).click()


def documents(page: Page) -> list[Request]:
    """Return a list that grows with each document that a tab asks for."""
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if request.is_navigation_request() else None)
    return asked
