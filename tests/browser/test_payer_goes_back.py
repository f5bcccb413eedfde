"""Back as payers have it: their browser restores the page as they left it, which Playwright's switches prevent."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.support import CARD, Shop, fill_in, press

WITHOUT = ["--disable-back-forward-cache"]
RESTORED = """addEventListener("pageshow", (event) => { document.title = event.persisted ? "restored" : "loaded" })"""


@pytest.mark.parametrize("button", ["Pay", "Cancel"])
def test_a_restored_form_that_is_sent_again_changes_nothing(button: str, page: Page, shop: Shop) -> None:
    """The form is back with the card in it; whatever is pressed now, it was paid once, and leads to the merchant."""
    sold = shop.sell("cc")
    page.add_init_script(RESTORED)
    page.goto(sold["checkout_url"])
    fill_in(page)
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "succeeded")
    page.evaluate("setTimeout(() => history.back())")  # a restored page is never loaded, for which `go_back` would wait
    expect(page).to_have_title("restored")
    expect(page.get_by_label("Card number")).to_have_value(CARD)
    press(page, button)
    shop.comes_home(page, sold["refid"], "succeeded", times=[2])
    shop.ended(sold["refid"], "succeeded")
