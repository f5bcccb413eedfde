"""The card form: what a payer wrote into it, and what is wrong with that."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from starlette.requests import Request

from app.simulator.answers import KIGALI
from app.simulator.cards import Card, card_of

_EXPIRY: Final = re.compile(r"\s*(0[1-9]|1[0-2])\s*/?\s*(?:20)?(\d{2})\s*", re.ASCII)
"""MM/YY, as browsers fill it in, too: MM/YYYY. A phone's keypad for digits has no slash."""
_CVV: Final = re.compile(r"\d{3}", re.ASCII)


@dataclass(slots=True)
class CardForm:
    """A card form, filled in or not. `errors` are by field; the CVV is not shown, so that no page can repeat it."""

    number: str = ""
    expiry: str = ""
    cvv: str = field(default="", repr=False)
    card: Card | None = None
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, fields: dict[str, str]) -> "CardForm":
        """Read and check a form."""
        form = cls(fields.get("number", ""), fields.get("expiry", ""), fields.get("cvv", ""))
        form.card = card_of(form.number)
        if form.card is None:
            form.errors["number"] = "This number is not one of the test cards."
        if wrong := _wrong_with_expiry(form.expiry):
            form.errors["expiry"] = wrong
        if not _CVV.fullmatch(form.cvv):
            form.errors["cvv"] = "The CVV has 3 digits."
        return form

    @property
    def good(self) -> Card | None:
        """The card, when nothing is wrong."""
        return None if self.errors else self.card


async def fields_of(request: Request) -> dict[str, str]:
    """Read a form's texts; files are dropped."""
    async with request.form() as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


def _wrong_with_expiry(written: str) -> str:
    match = _EXPIRY.fullmatch(written)
    if match is None:
        return "The expiry date is a month and a year, as in 09/31."
    today = datetime.now(KIGALI)
    # A card is good until the end of its month.
    return "This card has expired." if (2000 + int(match[2]), int(match[1])) < (today.year, today.month) else ""
