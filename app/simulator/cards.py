"""The test cards: which number is accepted, and what comes of charging it. The Markdown that is made of them, too.

The accepted ones are the guide's, "Test cards"; it lists none that declines, so those are the simulator's own. No other
number is a card here, be it a real one. `python -m app.simulator.cards` prints the tables.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from app.simulator.codes import STATUSIDS
from app.simulator.script import Outcome

NO_CVV: Final = "000"
"""The CVV with which every card is declined."""

_MASTERCARD: Final = "MASTERCARD"
_VISA: Final = "VISA"
_GAPS: Final = re.compile(r"[\s-]")
_DECLINED_CVV: Final = Outcome("02", "DECLINED: CVV")


@dataclass(frozen=True, slots=True)
class Card:
    """A test card. `declines` is what charging it comes to, where that is no success."""

    number: str
    scheme: str
    kind: str
    declines: Outcome | None = None

    @property
    def masked(self) -> str:
        """The number as it may be shown: guide, "Request token registered on a client", cardhash."""
        return f"{self.number[:6]}xxxxxx{self.number[-4:]}"

    @property
    def spaced(self) -> str:
        """The number in groups of four, as it stands on a card."""
        return " ".join(self.number[at : at + 4] for at in range(0, len(self.number), 4))

    def charge(self, cvv: str, paid: Outcome) -> Outcome:
        """Tell what comes of charging the card: `paid`, unless the CVV or the card declines."""
        return _DECLINED_CVV if cvv == NO_CVV else self.declines or paid


ACCEPTED: Final = (
    Card("5101180000000007", _MASTERCARD, "Commercial Credit"),
    Card("2222400070000005", _MASTERCARD, "Commercial Debit"),
    Card("5577000055770004", _MASTERCARD, "Consumer"),
    Card("5136333333333335", _MASTERCARD, "Consumer"),
    Card("5585558555855583", _MASTERCARD, "Consumer"),
    Card("5555444433331111", _MASTERCARD, "Consumer"),
    Card("2222410740360010", _MASTERCARD, "Corporate"),
    Card("5555555555554444", _MASTERCARD, "Corporate"),
    Card("2222410700000002", _MASTERCARD, "Corporate Credit"),
    Card("2222400010000008", _MASTERCARD, "Credit"),
    Card("2223000048410010", _MASTERCARD, "Credit"),
    Card("2222400060000007", _MASTERCARD, "Debit"),
    Card("2223520443560010", _MASTERCARD, "Debit"),
    Card("5500000000000004", _MASTERCARD, "Debit"),
    Card("2222400030000004", _MASTERCARD, "Fleet Credit"),
    Card("6771798025000004", _MASTERCARD, "Mastercard"),
    Card("5100060000000002", _MASTERCARD, "Premium Credit"),
    Card("5100705000000002", _MASTERCARD, "Premium Debit"),
    Card("5103221911199245", _MASTERCARD, "Prepaid"),
    Card("4988438843884305", _VISA, "Classic"),
    Card("4166676667666746", _VISA, "Classic"),
    Card("4646464646464644", _VISA, "Classic"),
    Card("4000620000000007", _VISA, "Commercial Credit"),
    Card("4000060000000006", _VISA, "Commercial Debit"),
    Card("4293189100000008", _VISA, "Commercial Premium Credit"),
    Card("4988080000000000", _VISA, "Commercial Premium Debit"),
    Card("4111111111111111", _VISA, "Consumer"),
    Card("4444333322221111", _VISA, "Corporate"),
    Card("4001590000000001", _VISA, "Corporate Credit"),
    Card("4000180000000002", _VISA, "Corporate Debit"),
    Card("4000020000000000", _VISA, "Credit"),
    Card("4000160000000004", _VISA, "Debit"),
    Card("4002690000000008", _VISA, "Debit"),
    Card("4400000000000008", _VISA, "Debit"),
    Card("4484600000000004", _VISA, "Fleet Credit"),
    Card("4607000000000009", _VISA, "Fleet Debit"),
    Card("4977949494949497", _VISA, "Gold"),
    Card("4000640000000005", _VISA, "Premium Credit"),
    Card("4003550000000003", _VISA, "Premium Credit"),
    Card("4000760000000001", _VISA, "Premium Debit"),
    Card("4017340000000003", _VISA, "Premium Debit"),
    Card("4005519000000006", _VISA, "Purchasing Credit"),
    Card("4131840000000003", _VISA, "Purchasing Debit"),
    Card("4035501000000008", _VISA, "Visa"),
    Card("4151500000000008", _VISA, "Visa Credit"),
    Card("4571000000000001", _VISA, "Visa Dankort"),
    Card("4199350000000002", _VISA, "Visa Proprietary"),
)
"""Guide, "Test cards": every number of it, in its order, with its kind."""

DECLINING: Final = (
    Card("4000000000000002", _VISA, "declined", Outcome("02", "DECLINED")),
    Card("4000000000009995", _VISA, "insufficient funds", Outcome("02", "DECLINED: insufficient funds")),
    Card("4000000000000069", _VISA, "expired card", Outcome("02", "EXPIRED CARD")),
    Card("4000000000000119", _VISA, "processing error", Outcome("682", STATUSIDS["682"])),
    Card("5105105105105100", _MASTERCARD, "declined", Outcome("02", "DECLINED")),
)
"""The simulator's own numbers, none of them the guide's."""

CARDS: Final = {card.number: card for card in (*ACCEPTED, *DECLINING)}


def card_of(written: str) -> Card | None:
    """Find the card of a number, however it is written: spaces and dashes do not count."""
    return CARDS.get(_GAPS.sub("", written))


def markdown() -> str:
    """Write both tables in Markdown."""
    accepted = ((card.spaced, card.scheme, card.kind) for card in ACCEPTED)
    declining = (
        (card.spaced, card.scheme, card.kind, card.declines.statusid, card.declines.statusdesc)
        for card in DECLINING
        if card.declines
    )
    return "\n".join(
        (
            _table(("card", "scheme", "kind"), accepted),
            _table(("card", "scheme", "what is wrong", "statusid", "statusdesc"), declining),
        )
    )


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ("---",) * len(head), *lines))


if __name__ == "__main__":
    sys.stdout.write(markdown())
