"""K-Pay's truth: the payments it took in, what it said of them, and how often each was asked for."""

import time
from asyncio import Task
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Final

from app.simulator.script import Behaviour, Outcome

_SECRETS: Final = frozenset({"cvv", "token"})
"""What is kept of no request, and so can be printed by nothing."""


@dataclass(slots=True)
class Sent:
    """One attempt to send a postback, and the answer to it; `status` None is under way, broken off or an `error`."""

    statusid: str
    body: str
    content_type: str
    sent_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    status: int | None = None
    answer: str = ""
    error: str = ""

    def as_dict(self) -> dict[str, object]:
        """Show it for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Payment:
    """One payment. `truth` is what is so; `mask`, while there is one, is what checkstatus says instead.

    `delay` is the payer delay, in seconds, of the moment it came in. `life` is the task that plays its behaviour.
    """

    refid: str
    tid: str
    receipt: str
    amount: int
    order: Mapping[str, object]
    behaviour: Behaviour
    delay: float
    truth: Outcome
    mask: Outcome | None
    checks: int = 0
    sent: list[Sent] = field(default_factory=list)
    life: Task[None] | None = None

    def told(self) -> Outcome:
        """Count one question, and say what checkstatus answers to it."""
        self.checks += 1
        limit = self.behaviour.mask_asks
        if limit is not None and self.checks > limit:
            self.mask = None
        return self.mask or self.truth

    def message(self, outcome: Outcome) -> dict[str, object]:
        """Write the body of a postback and of checkstatus' answer, which are the same.

        Guide, "Post back asynchronous" and "Check transaction status"; payaccount stands only in the paid example.
        """
        payer = {"payaccount": self.order["msisdn"]} if outcome.statusid == "01" else {}
        return {
            "tid": self.tid,
            "refid": self.refid,
            "momtransactionid": self.receipt if outcome.receipt else "",
            **payer,
            "statusid": outcome.statusid,
            "statusdesc": outcome.statusdesc,
        }


class Ledger:
    """All payments, by refid and by tid, in memory. Only the event loop's thread may touch it."""

    def __init__(self) -> None:
        self._payments: dict[str, Payment] = {}
        self._tids: dict[str, Payment] = {}
        # Three digits or more, and no zero in front: a tid of digits alone may travel as a number.
        self._serial = count(101)
        self.requests: Counter[str] = Counter()
        """How often a `pay` or `tokenpay` was received for a refid, be it recorded, refused, or the second one."""

    def draft(self, order: Mapping[str, object], behaviour: Behaviour, delay: float) -> Payment:
        """Make a payment that is not recorded yet, with the numbers it will have."""
        serial, now = next(self._serial), int(time.time())
        # The second makes the numbers new after a restart, too: a database of payments may outlive the simulator.
        return Payment(
            refid=str(order["refid"]),
            tid=f"{behaviour.tid_prefix}{serial}{now}",
            receipt=f"{now}{serial}",
            amount=int(str(order["amount"])),
            order={name: value for name, value in order.items() if name not in _SECRETS},
            behaviour=behaviour,
            delay=delay,
            truth=behaviour.truth,
            mask=behaviour.mask,
        )

    def record(self, payment: Payment) -> None:
        """Take a payment in."""
        self._payments[payment.refid] = self._tids[payment.tid] = payment

    def by_refid(self, refid: str) -> Payment | None:
        """Find a payment by refid."""
        return self._payments.get(refid)

    def find(self, tid: str, refid: str) -> Payment | None:
        """Find a payment by either or both; when both are given, both must be right. Guide, "Check status: request"."""
        payment = self._tids.get(tid) if tid else self._payments.get(refid)
        return None if payment is None or (refid and payment.refid != refid) else payment

    def show(self, payment: Payment) -> dict[str, object]:
        """Show a payment for JSON, as it truly is."""
        truth = payment.truth
        return {
            "refid": payment.refid,
            "tid": payment.tid,
            "momtransactionid": payment.receipt if truth.receipt else "",
            "amount": payment.amount,
            "currency": payment.order.get("currency", "RWF"),
            "msisdn": payment.order["msisdn"],
            "pmethod": payment.order["pmethod"],
            "statusid": truth.statusid,
            "statusdesc": truth.statusdesc,
            "behaviour": payment.behaviour.number,
            "requests": self.requests[payment.refid],
            "checks": payment.checks,
            "postbacks": [sent.as_dict() for sent in payment.sent],
        }

    def items(self) -> list[dict[str, object]]:
        """Show all payments, oldest first."""
        return [self.show(payment) for payment in self._payments.values()]

    def not_recorded(self) -> dict[str, int]:
        """Tell the refids that were asked for and never taken in, with how often."""
        return {refid: times for refid, times in self.requests.items() if refid not in self._payments}
