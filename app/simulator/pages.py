"""What a payer sees of K-Pay: the card checkout, the phone that asks, and the page that saves a card.

Nobody is asked who they are: whoever knows the address acts as the payer, as at K-Pay.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.simulator.cards import ACCEPTED, DECLINING, NO_CVV
from app.simulator.form import CardForm, fields_of
from app.simulator.ledger import Ledger, Payment
from app.simulator.postbacks import Payer
from app.simulator.script import DECLINED, PAID, PENDING, Outcome
from app.simulator.templating import page
from app.simulator.tokens import Invitation, Wallet

_BY_CARD: Final = frozenset({"cc", "tokenpay"})
_CANCELLED: Final = replace(DECLINED, statusdesc="Transaction cancelled by the payer")
_ON_THE_PHONE: Final = {"approve": PAID, "reject": DECLINED}
_HEAD_START: Final = 1.0
"""Seconds that the postback gets before the payer is sent on."""
_WEB: Final = re.compile(r"https?://\S", re.IGNORECASE)
_TEST_CARDS: Final = {"accepted": ACCEPTED, "declining": DECLINING, "no_cvv": NO_CVV}


class Pages:
    """The pages under `/checkout` and `/token`; each form posts to its own page."""

    def __init__(self, ledger: Ledger, payer: Payer, wallet: Wallet) -> None:
        self._ledger = ledger
        self._payer = payer
        self._wallet = wallet

    async def checkout(self, request: Request) -> Response:
        """Show a payment to its payer, and let them act: guide, "Payment request: Response", url.

        A payment is settled once; what is sent after that changes nothing. A card payer is sent to the redirecturl
        ("Successful payment case of visa / mastercard"), one with a phone back to this page, which tells how it ended.
        """
        payment = self._ledger.find(request.path_params["tid"], "")
        if payment is None:
            return _not_found("payment")
        if request.method != "POST":
            return _shown(payment, CardForm())
        fields = await fields_of(request)
        if _is_pending(payment):
            form = CardForm.of(fields)
            outcome = _decided(payment, fields, form)
            if outcome is None:
                return _shown(payment, form, 422)
            await self._settle(payment, outcome)
        away = _web(payment.order.get("redirecturl")) if _is_by_card(payment) else ""
        return RedirectResponse(away or request.url.path, 303)

    async def token(self, request: Request) -> Response:
        """Let a client save one card, and no second one: guide, "Generate token"."""
        invitation = self._wallet.invitation(request.path_params["tid"])
        if invitation is None:
            return _not_found("request to save a card")
        if request.method != "POST":
            return _saving(invitation, CardForm())
        form = CardForm.of(await fields_of(request))
        if invitation.card is None:
            if form.good is None:
                return _saving(invitation, form, 422)
            self._wallet.save(invitation, form.good)
        return RedirectResponse(request.url.path, 303)

    async def _settle(self, payment: Payment, outcome: Outcome) -> None:
        """Settle, and wait a moment: who comes to the redirecturl should find that the postback was there."""
        if told := self._payer.settle(payment, outcome):
            await asyncio.wait({told}, timeout=_HEAD_START)


def _is_pending(payment: Payment) -> bool:
    return payment.truth.statusid == PENDING.statusid


def _is_by_card(payment: Payment) -> bool:
    return payment.order["pmethod"] in _BY_CARD


def _decided(payment: Payment, fields: Mapping[str, str], form: CardForm) -> Outcome | None:
    """Tell how the payer wants it to end; None when the form does not say."""
    do = fields.get("do", "")
    if not _is_by_card(payment):
        return _ON_THE_PHONE.get(do)
    if do == "cancel":
        return _CANCELLED
    return form.good.charge(form.cvv, PAID) if form.good else None


def _web(value: object) -> str:
    """Take an address that a browser may be sent to, else nothing: a redirecturl may hold anything."""
    return value if isinstance(value, str) and _WEB.match(value) and value.isprintable() else ""


def _shown(payment: Payment, form: CardForm, status: int = 200) -> Response:
    order = payment.order
    asking = "checkout" if _is_by_card(payment) else "phone"
    return page(
        asking if _is_pending(payment) else "settled",
        status,
        form=form,
        payment=payment,
        amount=f"{payment.amount:,} {order.get('currency', 'RWF')}",
        details=order["details"],
        msisdn=order["msisdn"],
        logo=_web(order.get("logourl")),
        shop=_web(order.get("redirecturl")),
        cards=_TEST_CARDS,
    )


def _saving(invitation: Invitation, form: CardForm, status: int = 200) -> Response:
    name = "saved" if invitation.card else "token"
    return page(name, status, form=form, invitation=invitation, cards=_TEST_CARDS)


def _not_found(what: str) -> Response:
    return page("not_found", 404, what=what)
