"""The waiting page in a real browser, with its script: it goes on by itself, or offers a way on."""

import time

import pytest
from playwright.sync_api import ConsoleMessage, Page, Response, Route, expect

from tests.browser.conftest import Opener
from tests.browser.support import Shop, documents, press

WAITING = "Waiting for your payment"
MOST_BYTES = 30_000
VIOLATIONS = """addEventListener("securitypolicyviolation", (event) => console.error(event.violatedDirective))"""


@pytest.mark.parametrize(
    ("button", "shown", "status"), [("Approve", "Paid", "succeeded"), ("Reject", "Not paid", "failed")]
)
def test_it_goes_on_when_the_phone_was_answered(button: str, shown: str, status: str, page: Page, shop: Shop) -> None:
    """One tab waits, the payer answers in another, and the first is at the merchant's without a click or a reload."""
    sold = shop.sell()
    asked = documents(page)
    page.goto(shop.link(sold["refid"]))
    expect(page.get_by_role("heading")).to_have_text(WAITING)
    phone = page.context.new_page()
    phone.goto(sold["checkout_url"])
    expect(phone.get_by_role("heading")).to_have_text("250780000005 is asked to approve 4,200 RWF")
    shop.still_open(sold["refid"])
    began = time.perf_counter()
    press(phone, button)
    expect(phone.get_by_role("heading")).to_have_text(shown)
    shop.comes_home(page, sold["refid"], status)
    took = time.perf_counter() - began
    print(f"from the click on {button} to the merchant's page: {took * 1000:.0f} ms")  # noqa: T201
    assert took < 4.8  # sooner than any page looks again by itself
    way = [shop.link(sold["refid"])] * 2 + [page.url]
    assert [request.url for request in asked] == way
    shop.ended(sold["refid"], status)


def test_after_30_seconds_there_is_a_way_on(page: Page, shop: Shop) -> None:
    """It comes into the live region by itself, the keyboard reaches it, and the payment stays open."""
    sold = shop.sell()
    page.clock.install()
    page.goto(shop.link(sold["refid"]))
    region = page.get_by_role("status")
    expect(region).to_have_count(1)
    page.clock.fast_forward(25_000)
    expect(region).to_be_empty()
    expect(page.get_by_role("link")).to_have_count(0)
    page.clock.fast_forward(6_000)
    expect(region).to_contain_text("This is taking longer than usual. You can go back to 127.0.0.1")
    way_on = region.get_by_role("link", name="Go on to 127.0.0.1")
    expect(way_on).to_be_visible()
    page.keyboard.press("Tab")
    expect(way_on).to_be_focused()
    page.keyboard.press("Enter")
    shop.comes_home(page, sold["refid"], "pending")
    shop.still_open(sold["refid"])


@pytest.mark.parametrize("cut", ["refused", "never connected"])
def test_it_looks_again_where_there_is_no_stream(cut: str, page: Page, shop: Shop) -> None:
    """Where something on the way cuts the stream off, the page looks again after some seconds, and goes on."""
    sold = shop.sell()
    asked = documents(page)
    streams: list[str] = []

    def cut_off(route: Route) -> None:
        streams.append(route.request.url)
        if cut == "refused":
            route.fulfill(status=502, body="no streams here")
        else:
            route.abort("connectionfailed")

    page.route("**/news", cut_off)
    page.goto(shop.link(sold["refid"]))
    expect(page.get_by_role("heading")).to_have_text(WAITING)
    shop.simulator.settle(sold["refid"], "01")
    shop.comes_home(page, sold["refid"], "succeeded")
    assert streams
    assert [request.url.partition("?waited=")[0] for request in asked] == [shop.link(sold["refid"])] * 2 + [page.url]
    shop.ended(sold["refid"], "succeeded")


def test_the_way_on_comes_where_there_is_no_stream(page: Page, shop: Shop) -> None:
    """However often the page has looked again by itself, 30 seconds after the payer came there is a way on."""
    sold = shop.sell()
    page.route("**/news", lambda route: route.fulfill(status=502, body="no streams here"))
    page.clock.install()
    page.goto(shop.link(sold["refid"]))
    way_on = page.get_by_role("status").get_by_role("link")
    for _ in range(8):
        if way_on.count():
            break
        page.clock.fast_forward(5_000)
        page.wait_for_timeout(300)  # it comes again, and hears that there is no stream
    expect(way_on).to_be_visible()
    way_on.click()
    shop.comes_home(page, sold["refid"], "pending")
    shop.still_open(sold["refid"])


SLOW = 7.5
"""Seconds: longer than a stream takes to come again, and than a page waits that has none."""


def test_a_slow_merchant_is_waited_for(page: Page, shop: Shop) -> None:
    """The page sets out once: a merchant whose page takes its time is asked for it once, and shows it."""
    sold = shop.sell()
    page.goto(shop.link(sold["refid"]))
    expect(page.get_by_role("heading")).to_have_text(WAITING)
    with shop.merchant.slow(SLOW):
        shop.simulator.settle(sold["refid"], "01")
        shop.comes_home(page, sold["refid"], "succeeded")
    shop.ended(sold["refid"], "succeeded")


def test_a_slow_merchant_is_waited_for_after_a_click(page: Page, shop: Shop) -> None:
    """Who takes the way on is not called back by a page that would have looked again meanwhile."""
    sold = shop.sell()
    page.route("**/news", lambda route: route.fulfill(status=502, body="no streams here"))
    page.goto(f"{shop.link(sold['refid'])}?waited=40")
    with shop.merchant.slow(SLOW):
        page.get_by_role("status").get_by_role("link").click(no_wait_after=True)
        shop.comes_home(page, sold["refid"], "pending")
    shop.still_open(sold["refid"])


def test_it_is_one_light_page_from_one_host(open_tab: Opener, shop: Shop) -> None:
    """One document, one stream and no other request; under 30 kB all told; nothing that the browser complains of."""
    sold, page = shop.sell(), open_tab()
    responses: list[Response] = []
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page.on("response", lambda response: responses.append(response))  # noqa: PLW0108 - Playwright marks what it is given
    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.add_init_script(VIOLATIONS)
    page.clock.install()
    link = shop.link(sold["refid"])
    page.goto(link)
    expect(page.get_by_role("heading")).to_have_text(WAITING)
    assert page.evaluate("getComputedStyle(document.querySelector('main')).borderRadius") == "16px"  # it has its style
    page.clock.fast_forward(31_000)
    expect(page.get_by_role("link")).to_be_visible()  # and its script
    shop.simulator.settle(sold["refid"], "01")
    shop.comes_home(page, sold["refid"], "succeeded")
    ours = [response for response in responses if not response.url.startswith(shop.merchant.url)]
    assert [(response.url, response.status) for response in ours] == [(link, 200), (f"{link}/news", 200), (link, 303)]
    sizes = [response.request.sizes() for response in ours]
    assert sizes[0]["responseBodySize"] > 1000
    weight = sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes)
    print(f"the whole way over the waiting page: {weight} bytes, of them {sizes[0]['responseBodySize']} the page")  # noqa: T201
    assert weight < MOST_BYTES
    assert complaints == []
    shop.ended(sold["refid"], "succeeded")
