"""K-Pay's dialect: one address, JSON in, `pay`, `checkstatus` and the tokens, its refusals, and its answers."""

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.simulator import wire
from app.simulator.answers import Order, has_texts, immediate, nobody, refusal, response, taken_in, text
from app.simulator.behaviours import AT_CHECKOUT, BEHAVIOURS, by_token, chosen_by
from app.simulator.codes import BANKS, CURRENCIES, PMETHODS, REQUIRED, REQUIRED_OF_TOKENPAY, TOKENPAY_PMETHODS
from app.simulator.delivery import Courier
from app.simulator.ledger import Ledger
from app.simulator.postbacks import Payer
from app.simulator.script import Behaviour, Outcome
from app.simulator.tokens import Tokens, Wallet

_Action = Callable[[Request, Order], Awaitable[Response]]

_CVV: Final = re.compile(r"\d{3,4}", re.ASCII)
_APPROVED: Final = Outcome("01", "APPROVED", receipt=True)


@dataclass(slots=True)
class Mood:
    """How the whole gateway is at the moment; `POST /_simulator/behave` changes it."""

    down: bool
    refuse_credentials: bool
    latency: float
    payer_delay: float


@dataclass(frozen=True, slots=True)
class Account:
    """What a caller must show: guide, "Authentication"; `key` is the `Kpay-Key` header's, not asked for when empty."""

    username: str
    password: str
    retailerid: str
    key: str


class Gateway:
    """Answers what is sent to K-Pay."""

    def __init__(
        self, account: Account, mood: Mood, ledger: Ledger, payer: Payer, *, wallet: Wallet, courier: Courier
    ) -> None:
        self._account = account
        self._mood = mood
        self._ledger = ledger
        self._payer = payer
        self._wallet = wallet
        self._courier = courier
        tokens = Tokens(wallet)
        self._actions: dict[object, _Action] = {
            "pay": self._pay,
            "checkstatus": self._checkstatus,
            "addtoken": tokens.addtoken,
            "tokenlist": tokens.tokenlist,
            "tokenpay": self._tokenpay,
        }

    async def answer(self, request: Request) -> Response:
        """Answer a POST: the guide, but for its pages. Refusals travel on HTTP 200."""
        await asyncio.sleep(self._mood.latency)
        if self._mood.down:
            return response(wire.html_page, {}, 503)
        order = _read(await request.body())
        if self._mood.refuse_credentials or not self._may_enter(request):
            return refusal(600, order)
        action = order.get("action", "pay")
        if not isinstance(action, str) or action not in self._actions:
            return refusal(603, order)
        return await self._actions[action](request, order)

    def _may_enter(self, request: Request) -> bool:
        account = self._account
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        expected = base64.b64encode(f"{account.username}:{account.password}".encode())
        key = request.headers.get("kpay-key", "") if account.key else ""
        return (
            scheme.lower() == "basic"
            and compare_digest(given.strip().encode(), expected)
            and compare_digest(key.encode(), account.key.encode())
        )

    async def _pay(self, request: Request, order: Order) -> Response:
        self._ledger.requests[text(order.get("refid"))] += 1
        if retcode := self._objection(order, REQUIRED, PMETHODS):
            return refusal(retcode, order)
        waiting = AT_CHECKOUT if order["pmethod"] == "cc" else BEHAVIOURS["000"]
        return await self._take_in(request, order, chosen_by(text(order["msisdn"]), waiting))

    async def _tokenpay(self, request: Request, order: Order) -> Response:
        """Charge a saved card at once: guide, "Payment request by token".

        A magic number goes before what card and CVV say.
        """
        self._ledger.requests[text(order.get("refid"))] += 1
        cvv, card = text(order.get("cvv")), self._wallet.charged(text(order.get("token")))
        if not _CVV.fullmatch(cvv):
            return refusal(603, order)
        if retcode := self._objection(order, REQUIRED_OF_TOKENPAY, TOKENPAY_PMETHODS):
            return refusal(retcode, order)
        if card is None:
            return refusal(606, order)
        magic = chosen_by(text(order["msisdn"]))
        ordinary = magic is BEHAVIOURS["000"]
        return await self._take_in(request, order, by_token(card.charge(cvv, _APPROVED)) if ordinary else magic)

    async def _take_in(self, request: Request, order: Order, behaviour: Behaviour) -> Response:
        # From the objection to `record` nothing is awaited: of two requests for one refid exactly one is taken in.
        payment = self._ledger.draft(order, behaviour, self._mood.payer_delay)
        if behaviour.recorded:
            self._ledger.record(payment)
            life = self._payer.start(payment)
            if behaviour.reply_last:
                await asyncio.wait({life})
        reply = behaviour.reply
        message = immediate(payment, reply) if reply.says else taken_in(payment, reply, request)
        answer = response(reply.write, message, reply.status)
        return await self._courier.deliver(reply.delivery, request, answer)

    def _objection(self, order: Order, required: tuple[str, ...], pmethods: frozenset[str]) -> int:
        amount = order.get("amount")
        # `type`, for True is an int to isinstance.
        if not has_texts(order, required) or type(amount) is not int or amount <= 0:
            return 603
        if text(order.get("currency", "RWF")) not in CURRENCIES:
            return 603
        found = (
            (604, order["retailerid"] != self._account.retailerid),
            (609, order["pmethod"] not in pmethods),
            (610, "bankid" in required and order["bankid"] not in BANKS),
            (608, self._ledger.by_refid(text(order["refid"])) is not None),
        )
        return next((retcode for retcode, so in found if so), 0)

    async def _checkstatus(self, _: Request, order: Order) -> Response:
        tid, refid = text(order.get("tid")), text(order.get("refid"))
        if not tid and not refid:
            return response(wire.as_json, nobody("603"))
        payment = self._ledger.find(tid, refid)
        told = payment.told() if payment else None
        # 611 while masked has the same shape as 611 for a payment that never was.
        if payment is None or told is None or told.statusid == "611":
            return response(wire.as_json, nobody("611"))
        return response(payment.behaviour.check, payment.message(told))


def _read(body: bytes) -> Order:
    """Read a request's body; a malformed one reads as an empty one, and is refused for what it lacks."""
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return order if isinstance(order, dict) else {}
