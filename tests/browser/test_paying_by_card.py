"""A card payer in a real browser: K-Pay's checkout, this service, the merchant's page; and a card that is saved."""

import time

import pytest
from playwright.sync_api import Page, expect

from app.simulator.cards import ACCEPTED
from tests.browser.support import Shop, fill_in, press
from tests.support import payment


def test_a_card_pays_and_its_payer_comes_home(page: Page, shop: Shop) -> None:
    """Typed, paid, and on the merchant's page with `status=succeeded`, which the payment is."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    expect(page.get_by_role("heading")).to_have_text("Pay by card")
    expect(page.get_by_text("4,200 RWF")).to_be_visible()
    fill_in(page)
    began = time.perf_counter()
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "succeeded")
    print(f"from the click on Pay to the merchant's page: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201
    assert shop.ended(sold["refid"], "succeeded")["failure"] is None


@pytest.mark.parametrize(
    ("number", "cvv", "code"),
    [
        ("4000 0000 0000 0002", "123", "declined"),
        ("4000 0000 0000 9995", "123", "insufficient_funds"),
        (ACCEPTED[0].spaced, "000", "declined"),
    ],
)
def test_a_card_that_declines(number: str, cvv: str, code: str, page: Page, shop: Shop) -> None:
    """The payer comes home with `status=failed`, and the payment says what was wrong with the card."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    fill_in(page, number, cvv=cvv)
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "failed")
    assert shop.ended(sold["refid"], "failed")["failure"]["code"] == code


def test_a_payer_who_cancels(page: Page, shop: Shop) -> None:
    """Cancel asks for no card; the payer comes home with `status=failed`, and the payment is cancelled."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    press(page, "Cancel")
    shop.comes_home(page, sold["refid"], "failed")
    assert shop.ended(sold["refid"], "failed")["failure"]["code"] == "cancelled"


def test_a_mistake_in_the_form_is_told_at_its_field_and_charges_nothing(page: Page, shop: Shop) -> None:
    """An unknown number, a past date and a short CVV are each said beside the field, and in its description, aloud."""
    sold = shop.sell("cc")
    page.goto(sold["checkout_url"])
    for label in ("Card number", "Expiry", "CVV"):
        expect(page.get_by_label(label)).not_to_have_attribute("aria-invalid", "true")
    fill_in(page, "4111 1111 1111 1112", "01/20", "12")
    press(page, "Pay")
    expect(page.get_by_role("alert")).to_have_count(3)
    said = {
        "Card number": "This number is not one of the test cards.",
        "Expiry": "This card has expired.",
        "CVV": "The CVV has 3 digits.",
    }
    for label, words in said.items():
        box = page.get_by_label(label)
        expect(box).to_have_attribute("aria-invalid", "true")
        expect(box).to_have_accessible_description(words)
        alert = page.get_by_role("alert").filter(has_text=words)
        expect(alert).to_be_visible()
        field, told = box.bounding_box(), alert.bounding_box()
        assert field is not None
        assert told is not None
        assert 0 <= told["y"] - (field["y"] + field["height"]) < 24
    expect(page.get_by_label("Card number")).to_have_value("4111 1111 1111 1112")
    expect(page.get_by_label("CVV")).to_have_value("")
    shop.still_open(sold["refid"])
    assert shop.merchant.landed(sold["refid"]) == []
    fill_in(page)
    press(page, "Pay")
    shop.comes_home(page, sold["refid"], "succeeded")
    shop.ended(sold["refid"], "succeeded")


def test_a_card_is_saved_in_the_browser_and_pays_without_one(page: Page, shop: Shop) -> None:
    """The page of `POST /v1/tokens` saves a card once; the list has it, and its token pays over REST."""
    http, msisdn = shop.service.http, "250788555001"
    made = http.post("/v1/tokens", json={"msisdn": msisdn, "email": "a@example.rw", "cusname": "KANEZA"})
    assert made.status_code == 201
    page.goto(made.json()["url"])
    expect(page.get_by_role("heading")).to_have_text("Save a card")
    fill_in(page)
    press(page, "Save card")
    expect(page.get_by_role("heading")).to_have_text("Card saved")
    expect(page.get_by_role("main")).to_contain_text("510118xxxxxx0007")
    page.go_back()
    expect(page.get_by_role("heading")).to_have_text("Card saved")
    (card,) = http.get("/v1/tokens", params={"msisdn": msisdn}).json()["items"]
    assert (card["cardhash"], card["scheme"]) == ("510118xxxxxx0007", "MASTERCARD")
    order = payment(msisdn, pmethod="cc", token=card["token"], cvv="123", redirecturl=f"{shop.merchant.url}/done")
    paid = http.post("/v1/payments", json=order)
    assert paid.status_code == 201
    shop.ended(paid.json()["refid"], "succeeded", postbacks=0)
    page.goto(shop.link(paid.json()["refid"]))
    assert page.url == f"{shop.merchant.url}/done?refid={paid.json()['refid']}&status=succeeded"
