"""What payers see: on a phone's screen, in their language, in light and dark, and read aloud (axe)."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.api import pages
from app.api.words import ENGLISH, FRENCH, KINYARWANDA, Words
from tests.browser.conftest import Opener
from tests.browser.screens import DESKTOP, PHONE, accessible, fits, picture
from tests.browser.support import Shop, fill_in, press

LONG = "https://hatariamasokoyosedukodukundagucururizamumujyiwakigalinomuntara.example.rw/done"
Go = Callable[[Page, Shop], None]


def waiting(page: Page, shop: Shop) -> None:
    """Wait for a payment that takes its time."""
    page.goto(shop.link(shop.sell()["refid"]))


def waited(page: Page, shop: Shop) -> None:
    """Wait for more than 30 seconds, for a merchant with a long name who wants much money."""
    page.clock.install()
    page.goto(shop.link(shop.sell(redirecturl=LONG, amount=123_456_789)["refid"]))
    page.clock.fast_forward(31_000)
    expect(page.get_by_role("status").get_by_role("link")).to_be_visible()


def not_valid(page: Page, shop: Shop) -> None:
    """Follow a link that is wrong."""
    page.goto(f"{shop.link('x')}x")


def checkout(page: Page, shop: Shop) -> None:
    """Come to the card form."""
    page.goto(shop.sell("cc")["checkout_url"])


def mistaken(page: Page, shop: Shop) -> None:
    """Write all of a card wrong."""
    checkout(page, shop)
    fill_in(page, "4111 1111 1111 1112", "01/20", "12")
    press(page, "Pay")
    expect(page.get_by_role("alert")).to_have_count(3)


def card_list(page: Page, shop: Shop) -> None:
    """Open the list of test cards."""
    checkout(page, shop)
    page.get_by_text("Test cards").click()
    expect(page.get_by_role("table")).to_have_count(2)


def phone(page: Page, shop: Shop) -> None:
    """Be asked on the phone."""
    page.goto(shop.sell(details="a" * 200)["checkout_url"])


def settled(page: Page, shop: Shop) -> None:
    """Have answered on the phone."""
    phone(page, shop)
    press(page, "Approve")
    expect(page.get_by_role("heading")).to_have_text("Paid")


def token(page: Page, shop: Shop) -> None:
    """Be about to save a card."""
    whose = {"msisdn": "250788555002", "email": "a@example.rw", "cusname": "KANEZA"}
    page.goto(shop.service.http.post("/v1/tokens", json=whose).json()["url"])


def saved(page: Page, shop: Shop) -> None:
    """Have saved a card."""
    token(page, shop)
    fill_in(page)
    press(page, "Save card")
    expect(page.get_by_role("heading")).to_have_text("Card saved")


def lost(page: Page, shop: Shop) -> None:
    """Look for a payment that K-Pay does not have."""
    page.goto(f"{shop.simulator.url}/checkout/X")


def ledger(page: Page, shop: Shop) -> None:
    """Look at the simulator's first page."""
    page.goto(shop.simulator.url)


OURS: tuple[Go, ...] = (waiting, waited, not_valid)
KPAYS: tuple[Go, ...] = (checkout, mistaken, card_list, phone, settled, token, saved, lost, ledger)
TITLES: dict[Go, Callable[[Words], str]] = {
    waiting: lambda words: words.waiting,
    waited: lambda words: words.waiting,
    not_valid: lambda words: words.not_valid,
}


def named(value: object) -> str | None:
    """Return how a case is called."""
    return getattr(value, "__name__", None) or getattr(value, "language", None)


@pytest.fixture(params=["light", "dark"])
def small(request: pytest.FixtureRequest, open_tab: Opener) -> Callable[[str], Page]:
    """Return an opener of tabs on a phone's screen, in light or dark, for a language."""
    return lambda locale: open_tab(**PHONE, color_scheme=request.param, locale=locale)


@pytest.mark.parametrize("words", [ENGLISH, FRENCH, KINYARWANDA], ids=named)
@pytest.mark.parametrize("go", OURS, ids=named)
def test_our_pages_on_a_phone(go: Go, words: Words, small: Callable[[str], Page], shop: Shop, tmp_path: Path) -> None:
    """In the payer's language and marked as such, light or dark; nothing scrolls, all can be hit, axe is content."""
    page = small(f"{words.language}-RW")
    go(page, shop)
    picture(page, tmp_path, go.__name__)
    expect(page.locator("html")).to_have_attribute("lang", words.language)
    expect(page).to_have_title(TITLES[go](words))
    expect(page.get_by_role("heading")).to_have_text(TITLES[go](words))
    assert fits(page) == (1 if go is waited else 0)
    if go is waited:
        expect(page.get_by_role("link")).to_contain_text(words.go_on.partition("{")[0])
        expect(page.get_by_text(f"123{words.thousands}456{words.thousands}789\u00a0RWF")).to_be_visible()
    print(f"axe: {accessible(page)} rules kept")  # noqa: T201


@pytest.mark.parametrize("words", [ENGLISH, FRENCH, KINYARWANDA], ids=named)
def test_the_page_of_a_busy_service_on_a_phone(words: Words, small: Callable[[str], Page], tmp_path: Path) -> None:
    """It fits and reads well; axe minds only that it comes again by itself, for which it is there."""
    page = small(words.language)
    page.set_content(bytes(pages.busy(words).body).decode())
    picture(page, tmp_path, "busy")
    expect(page.locator("html")).to_have_attribute("lang", words.language)
    expect(page.get_by_role("heading")).to_have_text(words.moment)
    fits(page)
    print(f"axe: {accessible(page, but=frozenset({'meta-refresh'}))} rules kept")  # noqa: T201


@pytest.mark.parametrize("go", KPAYS, ids=named)
def test_the_simulators_pages_on_a_phone(go: Go, open_tab: Opener, shop: Shop, tmp_path: Path) -> None:
    """Nothing to scroll sideways, all to hit, nothing that axe finds."""
    page = open_tab(**PHONE)
    go(page, shop)
    picture(page, tmp_path, go.__name__)
    things = fits(page)
    print(f"axe: {accessible(page)} rules kept; {things} things to hit")  # noqa: T201


@pytest.mark.parametrize("go", [*OURS, checkout, phone, settled, ledger], ids=named)
def test_pages_on_a_desktop(go: Go, open_tab: Opener, shop: Shop, tmp_path: Path) -> None:
    """Nothing to scroll sideways, all to hit, nothing that axe finds."""
    page = open_tab(**DESKTOP)
    go(page, shop)
    picture(page, tmp_path, go.__name__)
    things = fits(page)
    print(f"axe: {accessible(page)} rules kept; {things} things to hit")  # noqa: T201
