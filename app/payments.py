"""Starting a payment: commit the row, call K-Pay once, commit what it said. No transaction spans the call."""

import time
from dataclasses import dataclass

import stamina
import structlog

from app import metrics
from app.breaker import Breaker
from app.database import UNAVAILABLE, Database
from app.domain import Evidence, Source, Status
from app.intake import Intake
from app.kpay import meaning, request
from app.kpay.client import GatewayError, KPay, NotSent
from app.kpay.unseen import Unseen
from app.macs import RETURL, RETURN, Macs
from app.models import Row, mapping
from app.orders import NewPayment, Terms, record
from app.raw import Raw

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Started:
    """A payment as it stands after starting; `fresh` is False where the same request had been made before."""

    payment: Row
    fresh: bool


class Payments:
    """Starts payments at one gateway."""

    def __init__(
        self,
        *,
        database: Database,
        intake: Intake,
        kpay: KPay,
        macs: Macs,
        merchant: request.Merchant,
        terms: Terms,
        public_url: str,
        unseen: Unseen,
        breaker: Breaker,
    ) -> None:
        self._database = database
        self._intake = intake
        self._kpay = kpay
        self._macs = macs
        self._merchant = merchant
        self._terms = terms
        self._public_url = public_url
        self._unseen = unseen
        self._breaker = breaker

    async def start(
        self, order: NewPayment, client: str, idempotency_key: str | None, objection: Exception | None = None
    ) -> Started:
        """Record a payment, ask K-Pay for the money once, and return the payment with what K-Pay said.

        Promise: the row is committed before K-Pay hears of it, and K-Pay is asked by whoever inserted it and nobody
        else, ever. Raises `Conflict` where refid, key or order are taken, and `objection` where the payment would be
        new (a repetition is answered whatever has changed since); a database error means that nothing was sent.
        """
        row, fresh = await record(self._database, order, client, idempotency_key, self._terms, objection=objection)
        if not fresh:
            return Started(row, fresh=False)
        metrics.PAYMENTS.labels(Status.CREATED, row.pmethod).inc()
        log.info("payment created", refid=row.refid, pmethod=row.pmethod, client=client)
        evidence, raw = await self._ask_for_money(row, order.card)
        try:
            async for attempt in stamina.retry_context(on=UNAVAILABLE, attempts=3, wait_initial=0.2, timeout=5):
                with attempt:
                    row = await self._intake.take_in(row.refid, evidence, raw) or row
        except UNAVAILABLE:
            # K-Pay may have it; the recorded row says so already, and a check will bring what was not written.
            log.exception("K-Pay's reply could not be stored", refid=row.refid)
        return Started(row, fresh=True)

    async def _ask_for_money(self, row: Row, card: request.SavedCard | None) -> tuple[Evidence, Raw]:
        ways = request.Ways(self._way(RETURL, row.refid), self._way(RETURN, row.refid))
        try:
            if card is None:
                answer = await self._kpay.pay(request.pay(mapping(row), self._merchant, ways))
            else:
                answer = await self._kpay.tokenpay(request.tokenpay(mapping(row), card, self._merchant, ways))
        except GatewayError as exc:
            self._breaker.failed(time.monotonic(), str(exc))
            evidence = meaning.not_sent(str(exc)) if isinstance(exc, NotSent) else meaning.in_doubt(str(exc))
            return evidence, Raw.observation(Source.GATEWAY_REPLY, str(exc))
        self._unseen.look(answer.message, answer.content_type)
        evidence = meaning.of_pay_reply(answer.message, row.refid, answer.http_status)
        if answer.message is not None and not meaning.refuses_us(evidence):
            self._breaker.succeeded()
        else:
            why = f"K-Pay answers {evidence.retcode or answer.http_status}"
            refuses_us = meaning.refuses_us(evidence)
            self._breaker.judge(time.monotonic(), answer.http_status, why, refuses_us=refuses_us)
        return evidence, Raw.answer(Source.GATEWAY_REPLY, answer)

    def _way(self, purpose: str, refid: str) -> str:
        return f"{self._public_url}/kpay/{purpose}/{refid}/{self._macs.make(purpose, refid)}"
