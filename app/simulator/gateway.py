"""K-Pay's dialect: one address, JSON in, `pay` and `checkstatus`, its refusals, and its answers however they travel."""

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from hmac import compare_digest
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.simulator import wire
from app.simulator.behaviours import chosen_by
from app.simulator.codes import BANKS, CURRENCIES, PMETHODS, REQUIRED, RETCODES
from app.simulator.ledger import Ledger, Payment
from app.simulator.postbacks import Payer
from app.simulator.script import Delivery, Reply

HANGUP: Final = "kpay.hangup"
"""The ASGI extension whose `close` ends the connection with nothing said; see `server`."""

_HOLD: Final = 60.0
"""Seconds until a held answer becomes a proxy's 504."""
_DRIBBLE: Final = 0.5
"""Seconds between the bytes of a dribbled answer."""
_KIGALI: Final = timezone(timedelta(hours=2))

Order = Mapping[str, object]


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
    """Answers what is sent to K-Pay. `closing` set makes answers that are being held or dribbled end at once."""

    def __init__(self, account: Account, mood: Mood, ledger: Ledger, payer: Payer) -> None:
        self._account = account
        self._mood = mood
        self._ledger = ledger
        self._payer = payer
        self.closing = asyncio.Event()
        self._actions: dict[object, Callable[[Request, Order], Awaitable[Response]]] = {
            "pay": self._pay,
            "checkstatus": self._checkstatus,
        }
        self._deliveries: dict[Delivery, Callable[[Request, Response], Awaitable[Response]]] = {
            Delivery.WHOLE: self._whole,
            Delivery.DRIBBLED: self._dribbled,
            Delivery.HELD: self._held,
            Delivery.CLOSED: self._closed,
        }

    async def answer(self, request: Request) -> Response:
        """Answer a POST: guide, "Payment request" and "Check transaction status". Refusals travel on HTTP 200."""
        await asyncio.sleep(self._mood.latency)
        if self._mood.down:
            return _response(wire.html_page, {}, 503)
        order = _read(await request.body())
        if self._mood.refuse_credentials or not self._may_enter(request):
            return _refusal(600, order)
        action = order.get("action", "pay")
        if not isinstance(action, str) or action not in self._actions:
            return _refusal(603, order)
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
        self._ledger.requests[_text(order.get("refid"))] += 1
        if retcode := self._objection(order):
            return _refusal(retcode, order)
        # From here to `record` nothing is awaited: of two requests for one refid exactly one is taken in.
        behaviour = chosen_by(_text(order["msisdn"]))
        payment = self._ledger.draft(order, behaviour, self._mood.payer_delay)
        if behaviour.recorded:
            self._ledger.record(payment)
            life = self._payer.start(payment)
            if behaviour.reply_last:
                await asyncio.wait({life})
        reply = behaviour.reply
        message = _immediate(payment, reply) if reply.says else _taken_in(payment, reply, request)
        response = _response(reply.write, message, reply.status)
        return await self._deliveries[reply.delivery](request, response)

    def _objection(self, order: Order) -> int:
        amount = order.get("amount")
        texts = [value for value in map(order.get, REQUIRED) if isinstance(value, str) and value]
        # `type`, for True is an int to isinstance.
        if len(texts) < len(REQUIRED) or type(amount) is not int or amount <= 0:
            return 603
        if _text(order.get("currency", "RWF")) not in CURRENCIES:
            return 603
        found = (
            (604, order["retailerid"] != self._account.retailerid),
            (609, order["pmethod"] not in PMETHODS),
            (610, order["bankid"] not in BANKS),
            (608, self._ledger.by_refid(_text(order["refid"])) is not None),
        )
        return next((retcode for retcode, so in found if so), 0)

    async def _checkstatus(self, _: Request, order: Order) -> Response:
        tid, refid = _text(order.get("tid")), _text(order.get("refid"))
        if not tid and not refid:
            return _response(wire.as_json, _nobody("603"))
        payment = self._ledger.find(tid, refid)
        told = payment.told() if payment else None
        # 611 while masked has the same shape as 611 for a payment that never was.
        if payment is None or told is None or told.statusid == "611":
            return _response(wire.as_json, _nobody("611"))
        return _response(payment.behaviour.check, payment.message(told))

    async def _whole(self, _: Request, response: Response) -> Response:
        return response

    async def _dribbled(self, _: Request, response: Response) -> Response:
        async def drops() -> AsyncIterator[bytes]:
            for byte in bytes(response.body):
                yield bytes([byte])
                if await self._rest(_DRIBBLE):
                    return

        return StreamingResponse(drops(), response.status_code, media_type=wire.JSON)

    async def _held(self, request: Request, _: Response) -> Response:
        left = asyncio.create_task(_gone(request))
        closing = asyncio.create_task(self.closing.wait())
        await asyncio.wait({left, closing}, timeout=_HOLD, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        closing.cancel()
        return _response(wire.html_page, {}, 504)

    async def _closed(self, request: Request, _: Response) -> Response:
        request.scope["extensions"][HANGUP]["close"]()
        await _gone(request)
        return Response()  # to nobody

    async def _rest(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)
        return self.closing.is_set()


async def _gone(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _read(body: bytes) -> Order:
    """Read a request's body; a malformed one reads as an empty one, and is refused for what it lacks."""
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return order if isinstance(order, dict) else {}


def _text(value: object) -> str:
    """Take a text, or a whole number as its digits (a tid may come back as the number it was sent as); else nothing."""
    return str(value) if isinstance(value, str) or type(value) is int else ""


def _response(write: wire.Writer, message: wire.Message, status: int = 200) -> Response:
    body, content_type = write(message)
    return Response(body, status, {"Content-Type": content_type})


def _refusal(retcode: int, order: Order) -> Response:
    """Refuse a request without making a payment: the shape of the guide's refusal, with no tid."""
    return _response(
        wire.as_json,
        {
            "reply": RETCODES[retcode],
            "url": "",
            "success": 0,
            "authkey": secrets.token_hex(13),
            "tid": "",
            "refid": _text(order.get("refid")),
            "retcode": retcode,
        },
    )


def _nobody(statusid: str) -> wire.Message:
    """Answer checkstatus about no payment: guide, "Transaction not found"."""
    return {"tid": "", "refid": "", "momtransactionid": "", "statusid": statusid, "statusdesc": RETCODES[int(statusid)]}


def _taken_in(payment: Payment, reply: Reply, request: Request) -> wire.Message:
    """Answer `pay`: guide, "Payment request: Response". Only a card payer has a page to go to."""
    url = f"{request.base_url}checkout/{payment.tid}" if payment.order["pmethod"] == "cc" and not reply.retcode else ""
    return {
        "reply": reply.reply,
        "url": url,
        "success": 0 if reply.retcode else 1,
        "authkey": secrets.token_hex(13),
        "tid": payment.tid if reply.tid else "",
        "refid": f"{payment.refid}X" if reply.wrong_refid else payment.refid,
        "retcode": reply.retcode,
    }


def _immediate(payment: Payment, reply: Reply) -> wire.Message:
    """Answer `pay` of an "automatically processed" payment: guide, "Payment request", the second response."""
    says = reply.says or payment.truth
    return {
        "tid": payment.tid,
        "refid": payment.refid,
        "momtransactionid": payment.receipt if says.receipt else "",
        "statusdesc": says.statusdesc,
        **({"comtime": f"{datetime.now(_KIGALI):%Y-%m-%d %H:%M:%S}"} if reply.comtime else {}),
        "statusid": says.statusid,
        **({} if reply.retcode is None else {"retcode": reply.retcode}),
    }
