"""What K-Pay's answers about saved cards mean (guide, "Generate token", "Request token registered on a client").

Pure and total. A refusal is a value. Another refid than the one sent is no fault: the guide's own example has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.kpay import codes
from app.kpay.wire import Message


@dataclass(frozen=True, slots=True)
class Page:
    """A page at K-Pay where a payer saves a card."""

    tid: str | None
    url: str


@dataclass(frozen=True, slots=True)
class Card:
    """A saved card: `cardhash` is its number, masked. The guide's two cards share one token."""

    cardhash: str
    scheme: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """K-Pay did not do it; `detail` is what it said, in its words."""

    detail: str
    retcode: str | None = None


def of_addtoken(message: Message | None, http_status: int = 200) -> Page | Refusal:
    """Read the answer to an `addtoken`."""
    if message is None:
        return _UNREADABLE
    if (refusal := _refusal(message, http_status)) is not None:
        return refusal
    return Page(message.tid, message.url) if message.url else Refusal("K-Pay's answer names no page")


def of_tokenlist(message: Message | None, http_status: int = 200) -> Sequence[Card] | Refusal:
    """Read the answer to a `tokenlist`; a card without a token is left out, since nobody can pay by it.

    An answer that accepts and lists nothing is a payer without cards; one that does not accept is a refusal.
    """
    if message is None:
        return _UNREADABLE
    if (refusal := _refusal(message, http_status)) is not None:
        return refusal
    if message.replies is None and message.reply is not None:
        return Refusal(message.reply)
    found = [{name: each.get(name) or "" for name in ("cardhash", "scheme", "token")} for each in message.replies or ()]
    # The guide prints tokens with line breaks inside.
    return [Card(**each | {"token": token}) for each in found if (token := "".join(each["token"].split()))]


_IS_AN_ERROR = 400
_UNREADABLE = Refusal("K-Pay's answer could not be read")


def _refusal(message: Message, http_status: int) -> Refusal | None:
    code = message.retcode or message.statusid
    if message.ambiguous:
        return Refusal("K-Pay's answer contradicts itself")
    accepted = code == codes.ACCEPTED or message.success or message.replies is not None or message.url is not None
    if accepted and message.success is not False and code in (None, codes.ACCEPTED) and http_status < _IS_AN_ERROR:
        return None
    known = codes.RETCODES.get(code or "")
    detail = message.statusdesc or message.reply or (known[2] if known else "K-Pay refused without a word")
    return Refusal(detail, code)
