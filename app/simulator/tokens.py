"""Saved cards: who was asked to save one, the token they are charged by, and K-Pay's two answers about them."""

import time
import uuid
from dataclasses import dataclass
from itertools import count

from starlette.requests import Request
from starlette.responses import Response

from app.simulator import wire
from app.simulator.answers import Order, authkey, has_texts, refusal, response
from app.simulator.cards import Card
from app.simulator.codes import REQUIRED_OF_ADDTOKEN, REQUIRED_OF_TOKENLIST


@dataclass(slots=True)
class Invitation:
    """The address at which a client may save one card, and the card, once saved."""

    tid: str
    msisdn: str
    card: Card | None = None


class Wallet:
    """All saved cards, in memory; of a card nothing is kept but which test card it is.

    Every card of one msisdn has the same token: guide, "Request token registered on a client", the example.
    """

    def __init__(self) -> None:
        self._invitations: dict[str, Invitation] = {}
        self._tokens: dict[str, str] = {}
        self._cards: dict[str, list[Card]] = {}
        self._serial = count(101)

    def invite(self, msisdn: str) -> Invitation:
        """Make an address to save a card at."""
        # The second makes it new after a restart, too.
        invitation = Invitation(f"TK3{next(self._serial)}{int(time.time())}", msisdn)
        self._invitations[invitation.tid] = invitation
        return invitation

    def invitation(self, tid: str) -> Invitation | None:
        """Find an address to save a card at."""
        return self._invitations.get(tid)

    def save(self, invitation: Invitation, card: Card) -> None:
        """Save a card, and use the invitation up. A card that was there already becomes the last one saved."""
        invitation.card = card
        token = self._tokens.setdefault(invitation.msisdn, str(uuid.uuid4()))
        self._cards[token] = [*(each for each in self._cards.get(token, []) if each != card), card]

    def cards(self, msisdn: str) -> list[tuple[Card, str]]:
        """List the cards of a msisdn with their token, in the order in which they were saved."""
        token = self._tokens.get(msisdn, "")
        return [(card, token) for card in self._cards.get(token, [])]

    def charged(self, token: str) -> Card | None:
        """Find the card that a token charges: the one saved last."""
        cards = self._cards.get(token)
        return cards[-1] if cards else None


class Tokens:
    """Answers `addtoken` and `tokenlist`; `tokenpay` is a payment, and the gateway's."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet

    async def addtoken(self, request: Request, order: Order) -> Response:
        """Answer with an address to save a card at: guide, "Generate token"."""
        if not has_texts(order, REQUIRED_OF_ADDTOKEN):
            return refusal(603, order)
        invitation = self._wallet.invite(str(order["msisdn"]))
        message = {
            "reply": "token generation url saved",
            "url": f"{request.base_url}token/{invitation.tid}",
            "success": 1,
            "authkey": authkey(),
            "tid": invitation.tid,
            "refid": order["refid"],
            "retcode": 0,
        }
        return response(wire.as_json, message)

    async def tokenlist(self, _: Request, order: Order) -> Response:
        """List a client's cards: guide, "Request token registered on a client", with the oddities of its example.

        `reply` is a list, `tid` is the number 0, and the refid is another than the one that was sent.
        """
        if not has_texts(order, REQUIRED_OF_TOKENLIST):
            return refusal(603, order)
        now = int(time.time())
        saved = self._wallet.cards(str(order["msisdn"]))
        message = {
            "reply": [{"cardhash": card.masked, "scheme": card.scheme, "token": token} for card, token in saved],
            "success": 1,
            "authkey": authkey(),
            "tid": 0,
            "refid": f"ABCD{now}" if order["refid"] != f"ABCD{now}" else f"ABCD{now + 1}",
            "retcode": 0,
        }
        return response(wire.as_json, message)
