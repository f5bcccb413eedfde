"""A browser without JavaScript: the whole way works, only a little slower."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Opener
from tests.browser.support import Shop, fill_in, press


@pytest.fixture
def plain(open_tab: Opener) -> Page:
    """Open a tab that runs no script."""
    return open_tab(java_script_enabled=False)


def test_a_card_pays(plain: Page, shop: Shop) -> None:
    """Checkout, a mistake, a good card, and home."""
    sold = shop.sell("cc")
    plain.goto(sold["checkout_url"])
    fill_in(plain, "1")
    press(plain, "Pay")
    expect(plain.get_by_role("alert")).to_have_text("This number is not one of the test cards.")
    fill_in(plain)
    press(plain, "Pay")
    shop.comes_home(plain, sold["refid"], "succeeded")
    shop.ended(sold["refid"], "succeeded")


def test_the_waiting_page_looks_again_by_itself(plain: Page, shop: Shop) -> None:
    """An open payment's page comes again and counts its seconds; one whose phone was answered goes on."""
    open_still, answered = shop.sell(), shop.sell()
    other = plain.context.new_page()
    plain.goto(shop.link(open_still["refid"]))
    other.goto(shop.link(answered["refid"]))
    for page in (plain, other):
        expect(page.get_by_role("heading")).to_have_text("Waiting for your payment")
    phone = plain.context.new_page()
    phone.goto(answered["checkout_url"])
    press(phone, "Approve")
    shop.comes_home(other, answered["refid"], "succeeded")
    shop.ended(answered["refid"], "succeeded")
    plain.wait_for_url(f"{shop.link(open_still['refid'])}?waited=5")
    expect(plain.get_by_role("heading")).to_have_text("Waiting for your payment")
    expect(plain.get_by_role("link")).to_have_count(0)
    shop.still_open(open_still["refid"])


def test_after_30_seconds_there_is_a_way_on(plain: Page, shop: Shop) -> None:
    """As its own refresh would have it by then, the page shows the way on, which leads on with `status=pending`."""
    sold = shop.sell()
    plain.goto(f"{shop.link(sold['refid'])}?waited=25")
    expect(plain.get_by_role("link")).to_have_count(0)
    plain.wait_for_url(re.compile(r"\?waited=30$"))
    plain.get_by_role("status").get_by_role("link", name="Go on to 127.0.0.1").click()
    shop.comes_home(plain, sold["refid"], "pending")
    shop.still_open(sold["refid"])
