"""Payers who close the tab, go back, or press twice: one charge, one truth, and a way to the merchant."""

import signal

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Opener
from tests.browser.support import Shop, documents, fill_in, press

EITHER = (1, 2)
"""A second press is a second journey of the browser, which ends the first wherever that has come: at the shop, too."""


def test_a_tab_that_is_closed_before_the_way_back(open_tab: Opener, shop: Shop) -> None:
    """Who pays and sees no answer has paid all the same; the link, opened later, goes straight to the merchant."""
    sold, page = shop.sell("cc"), open_tab()
    page.goto(sold["checkout_url"])
    fill_in(page)
    answers: list[int] = []

    def swallow(route: Route) -> None:
        answers.append(route.fetch(max_redirects=0).status)  # K-Pay answers, and the browser never hears of it
        route.abort("connectionreset")

    page.route(sold["checkout_url"], swallow)
    page.get_by_role("button", name="Pay", exact=True).click(no_wait_after=True)
    page.wait_for_event("requestfailed")
    page.close()
    assert answers == [303]
    shop.ended(sold["refid"], "succeeded")
    assert shop.merchant.landed(sold["refid"]) == []
    later = open_tab()
    asked = documents(later)
    later.goto(shop.link(sold["refid"]))
    shop.comes_home(later, sold["refid"], "succeeded")
    assert [request.redirected_from is not None for request in asked] == [False, True]


def test_back_from_the_merchant_charges_nothing(page: Page, shop: Shop) -> None:
    """Back shows that it is paid, without a form, and from there the payer comes to the merchant again."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    fill_in(page)
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "succeeded")
    page.go_back()
    expect(page.get_by_role("heading")).to_have_text("Paid")
    expect(page.get_by_role("button")).to_have_count(0)
    page.get_by_role("link", name="Back to the shop").click()
    shop.comes_home(page, sold["refid"], "succeeded", times=[2])
    shop.ended(sold["refid"], "succeeded")


def test_a_form_that_is_restored_and_sent_again(open_tab: Opener, shop: Shop) -> None:
    """A form filled in before, and sent after the payment was paid, charges nothing and leads to the merchant."""
    sold, page = shop.sell("cc"), open_tab()
    page.goto(sold["checkout_url"])
    fill_in(page)
    restored = page.context.new_page()
    restored.goto(sold["checkout_url"])
    fill_in(restored, "4000 0000 0000 0002")
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "succeeded")
    press(restored, "Pay")
    shop.comes_home(restored, sold["refid"], "succeeded", times=[2])
    shop.ended(sold["refid"], "succeeded")


def test_back_from_the_merchant_passes_over_the_waiting_page(page: Page, shop: Shop) -> None:
    """The waiting page leaves nothing in the history: Back leads to where the payer was before it."""
    sold = shop.sell()
    page.goto(f"{shop.merchant.url}/cart")
    page.goto(shop.link(sold["refid"]))
    expect(page.get_by_role("heading")).to_have_text("Waiting for your payment")
    shop.simulator.settle(sold["refid"], "01")
    shop.comes_home(page, sold["refid"], "succeeded")
    page.go_back()
    assert page.url == f"{shop.merchant.url}/cart"
    shop.ended(sold["refid"], "succeeded")


def test_double_click_on_pay(page: Page, shop: Shop) -> None:
    """A double click pays once, with one postback."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    fill_in(page)
    page.get_by_role("button", name="Pay", exact=True).dblclick(no_wait_after=True)
    shop.comes_home(page, sold["refid"], "succeeded", times=EITHER)
    shop.ended(sold["refid"], "succeeded")


def test_enter_twice(page: Page, shop: Shop) -> None:
    """Enter pays, not cancels, and twice it pays once."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    fill_in(page)
    for _ in range(2):
        page.keyboard.press("Enter")
    shop.comes_home(page, sold["refid"], "succeeded", times=EITHER)
    shop.ended(sold["refid"], "succeeded")


@pytest.mark.parametrize("then", ["Pay", "Cancel"])
def test_an_impatient_payer_presses_again(then: str, page: Page, shop: Shop) -> None:
    """While K-Pay waits for a service that is stuck, a second press is sent, too; what was said first counts."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    fill_in(page)
    boxes = [page.get_by_role("button", name=name, exact=True).bounding_box() for name in ("Pay", then)]
    sent: list[str] = []
    page.on("request", lambda request: sent.append(str(request.post_data)) if request.method == "POST" else None)
    shop.service.process.child.send_signal(signal.SIGSTOP)
    try:
        for box in boxes:
            assert box is not None
            with page.expect_request(lambda request: request.method == "POST"):
                page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    finally:
        shop.service.process.child.send_signal(signal.SIGCONT)
    shop.comes_home(page, sold["refid"], "succeeded")
    assert [data.rpartition("do=")[2] for data in sent] == ["pay", then.lower()]
    shop.ended(sold["refid"], "succeeded")
