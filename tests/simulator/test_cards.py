"""The test cards: each of the guide's pays, each of the simulator's own declines, and no other number is one."""

import subprocess
import sys

import pytest

from app.simulator.cards import ACCEPTED, CARDS, DECLINING, Card, card_of, markdown

from .support import Kpay

GUIDES = [card.number for card in ACCEPTED]


def luhn(number: str) -> bool:
    """Tell whether a card number's check digit is right."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def test_the_guides_cards_are_all_there() -> None:
    """There are 19 Mastercards and 28 Visas, none of them mistyped, and the simulator's own are others."""
    assert [card.scheme for card in ACCEPTED] == ["MASTERCARD"] * 19 + ["VISA"] * 28
    assert len(CARDS) == len(ACCEPTED) + len(DECLINING)
    assert all(luhn(number) and len(number) == 16 for number in CARDS)
    assert all(card.number.startswith("4") == (card.scheme == "VISA") for card in CARDS.values())


@pytest.mark.parametrize("number", GUIDES)
def test_each_card_of_the_guide_pays(kpay: Kpay, number: str) -> None:
    """A card of the guide's list pays at the checkout page, and the returl is told."""
    order = kpay.card_order()
    assert kpay.write(kpay.checkout(order), number=number).headers["location"] == order["redirecturl"]
    truth = kpay.truth(order["refid"])
    assert (truth["statusid"], truth["statusdesc"]) == ("01", "Successfully processed transaction.")
    assert truth["momtransactionid"]
    assert b'"statusid":"01"' in kpay.postbacks(order["refid"])[0].body


@pytest.mark.parametrize("card", DECLINING, ids=lambda card: card.number)
def test_each_declining_card_declines(kpay: Kpay, card: Card) -> None:
    """A declining card fails in its own words: postback, checkstatus and ledger agree, and the payer is sent on."""
    order = kpay.card_order()
    assert kpay.write(kpay.checkout(order), number=card.number).status_code == 303
    assert card.declines
    assert kpay.checkstatus(refid=order["refid"]) == {
        "tid": kpay.truth(order["refid"])["tid"],
        "refid": order["refid"],
        "momtransactionid": "",
        "statusid": card.declines.statusid,
        "statusdesc": card.declines.statusdesc,
    }
    assert len(kpay.postbacks(order["refid"])) == 1


def test_what_declining_cards_say() -> None:
    """The declining cards' words tell them apart, and one fails with the code that no table lists."""
    said = {card.number: (card.declines.statusid, card.declines.statusdesc) for card in DECLINING if card.declines}
    assert said == {
        "4000000000000002": ("02", "DECLINED"),
        "4000000000009995": ("02", "DECLINED: insufficient funds"),
        "4000000000000069": ("02", "EXPIRED CARD"),
        "4000000000000119": ("682", "An internal error caused the operation to fail"),
        "5105105105105100": ("02", "DECLINED"),
    }


@pytest.mark.parametrize("number", ["5555555555554444", "4000000000000119"])
def test_cvv_000_is_declined(kpay: Kpay, number: str) -> None:
    """The CVV 000 is declined on any card."""
    order = kpay.card_order()
    kpay.write(kpay.checkout(order), number=number, cvv="000")
    truth = kpay.truth(order["refid"])
    assert (truth["statusid"], truth["statusdesc"]) == ("02", "DECLINED: CVV")


@pytest.mark.parametrize("written", ["4111111111111111", "4111 1111 1111 1111", " 4111-1111-1111-1111 "])
def test_a_number_is_found_however_it_is_written(written: str) -> None:
    """Spaces and dashes in a number do not count."""
    card = card_of(written)
    assert card
    assert (card.kind, card.masked, card.spaced) == ("Consumer", "411111xxxxxx1111", "4111 1111 1111 1111")


@pytest.mark.parametrize(
    "written", ["", "4242424242424242", "411111111111111", "41111111111111110", "\u0664111111111111111"]
)
def test_no_other_number_is_a_card(written: str) -> None:
    """A number that is not in the tables is no card, be it a good one elsewhere."""
    assert card_of(written) is None


def test_module_prints_its_tables() -> None:
    """`python -m app.simulator.cards` prints the Markdown, one row for each card, and no warning."""
    command = [sys.executable, "-W", "error", "-m", "app.simulator.cards"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stdout == markdown()
    assert printed.stderr == ""
    assert all(printed.stdout.count(f"| {card.spaced} |") == 1 for card in CARDS.values())
