"""What a payer waits for: the waiting page, the way on after the phone was answered, and the way home from a card.

    .venv/bin/python -m bench.payers --payments 50

One payer after the other, without a browser: what is measured ends with the last byte of an answer's head. K-Pay is the
simulator, slowed down where it says so. Services, simulator, PostgreSQL and payers share the machine.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2

from app.dev.postgres import running
from app.macs import RETURN, Macs
from app.schema import migrate
from app.simulator.cards import ACCEPTED
from bench.listeners import line, told
from tests.support import SECRET_KEY, Json, Service, Simulator, run_service, run_simulator

NEVER_ACTS = "250780000005"
CALM = {"CHECK_SCHEDULE": "3600"}
SHOP = "https://shop.example.rw/done?order=7"
CARD = {"number": ACCEPTED[0].number, "expiry": "09/31", "cvv": "123", "do": "pay"}
WARM = 5
SLOW = 0.2
READS = 1.1
"""Seconds that a payer takes to press: K-Pay is asked about one payment once a second at most, and was on arrival."""


@dataclass(frozen=True)
class Till:
    """Where payments are started and their payers come back to."""

    service: Service
    simulator: Simulator
    browser: httpx2.Client

    def sell(self, pmethod: str = "momo") -> tuple[Json, str]:
        """Start a payment that waits for its payer; return it and the payer's way back."""
        sold = self.service.start(NEVER_ACTS, pmethod=pmethod, redirecturl=SHOP)
        return sold, f"{self.service.url}/kpay/return/{sold['refid']}/{Macs([SECRET_KEY]).make(RETURN, sold['refid'])}"

    def sent_on(self, url: str, refid: str) -> None:
        """Ask for the way back, and fail unless it leads to the merchant."""
        answer = self.browser.get(url)
        wanted = f"{SHOP}&refid={refid}&status=succeeded"
        assert (answer.status_code, answer.headers.get("location")) == (303, wanted), answer.text  # noqa: S101 - else nothing was measured

    def first_byte(self) -> float:
        """Return how long a payer looks at nothing who comes back to an open payment."""
        _, url = self.sell()
        began = time.perf_counter()
        with self.browser.stream("GET", url) as answer:
            took = time.perf_counter() - began
            answer.read()
        assert answer.status_code == httpx2.codes.OK  # noqa: S101 - else nothing was measured
        return took

    def approved(self) -> float:
        """Return how long after the payer's press on the phone the open page has its way to the merchant."""
        sold, url = self.sell()
        self.browser.get(url)
        listens = threading.Event()

        def wait() -> float:
            with self.browser.stream("GET", f"{url}/news") as news:
                for text in news.iter_lines():
                    listens.set()
                    if text == "event: final":
                        break
            self.sent_on(url, sold["refid"])
            return time.perf_counter()

        with ThreadPoolExecutor(1) as page, httpx2.Client(trust_env=False) as phone:
            phone.get(sold["checkout_url"])
            arrival = page.submit(wait)
            listens.wait(10)
            time.sleep(READS)
            began = time.perf_counter()
            phone.post(sold["checkout_url"], data={"do": "approve"})
            return arrival.result(30) - began

    def paid_by_card(self) -> float:
        """Return how long after the press on Pay a card payer is on the way to the merchant."""
        sold, url = self.sell("cc")
        self.browser.get(sold["checkout_url"])
        began = time.perf_counter()
        answer = self.browser.post(sold["checkout_url"], data=CARD)
        assert answer.headers["location"] == url  # noqa: S101 - else nothing was measured
        self.sent_on(url, sold["refid"])
        return time.perf_counter() - began

    def weight(self) -> tuple[int, int]:
        """Return the bytes of the waiting page, and those of its head."""
        answer = self.browser.get(self.sell()[1], headers={"Accept-Encoding": "gzip, br"})
        head = sum(len(name) + len(value) + 4 for name, value in answer.headers.raw)
        return int(answer.headers["content-length"]), head


def times(count: int, once: Callable[[], float]) -> Sequence[float]:
    """Return what so many took, one after the other, the first ones left out: what those load, nobody else pays for."""
    return [once() for _ in range(WARM + count)][WARM:]


def measure(till: Till, count: int) -> None:
    """Measure and print."""
    body, head = till.weight()
    line("the waiting page, all in one answer", f"{body} bytes and a head of {head}")
    told("first byte of it, K-Pay answers in 0 ms", times(count, till.first_byte))
    till.simulator.behave(latency=SLOW)
    told(f"first byte of it, K-Pay answers in {SLOW * 1000:.0f} ms", times(count, till.first_byte))
    till.simulator.behave(latency=0)
    told("approve on the phone to the open page's 303", times(count, till.approved))
    told("card form to the merchant's address", times(count, till.paid_by_card))


def main() -> None:
    """Run everything that is needed and measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--payments", type=int, default=50)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with running(folder / "postgres") as server, run_simulator(folder) as simulator:
            migrate(server.url)
            with (
                run_service(folder, server.url, simulator, CALM) as service,
                httpx2.Client(trust_env=False, timeout=30) as browser,
            ):
                measure(Till(service, simulator, browser), wanted.payments)


if __name__ == "__main__":
    main()
