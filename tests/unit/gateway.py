"""A K-Pay for histories: honest, but it lags behind itself; its words are bytes, as on the wire."""

import json
from dataclasses import dataclass, field
from enum import StrEnum

from .support import REFID

TID = "A7"
MOMTRANSACTIONID = "616730887"


class Truth(StrEnum):
    """What is so at K-Pay and at the payer's bank."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    FAILED = "failed"
    PAID = "paid"


MOVES = {
    Truth.UNKNOWN: (Truth.PENDING, Truth.PAID),
    Truth.PENDING: (Truth.PAID, Truth.FAILED),
    Truth.FAILED: (Truth.PAID,),
    Truth.PAID: (),
}
"""How a payment goes on. A bank that said no may find later that the money has moved."""

_STATUSIDS = {Truth.PENDING: "03", Truth.FAILED: "02", Truth.PAID: "01"}


@dataclass
class Gateway:
    """One payment at K-Pay: every truth that it has been through, oldest first."""

    was: list[Truth] = field(default_factory=lambda: [Truth.UNKNOWN])

    @property
    def truth(self) -> Truth:
        """What is so now."""
        return self.was[-1]

    def move(self, truth: Truth) -> None:
        """Let the payment go on."""
        assert truth in MOVES[self.truth]
        self.was.append(truth)

    def status(self, lag: int = 0) -> bytes:
        """Return the answer to a checkstatus as it was `lag` moves ago: never a truth that is still to come."""
        return _status(self.was[max(0, len(self.was) - 1 - lag)])

    def reply(self) -> bytes:
        """Return the reply to the payment request that has just come in."""
        if self.truth is Truth.PAID:
            return _body(tid=TID, refid=REFID, momtransactionid=MOMTRANSACTIONID, statusid="01", retcode=0)
        return _body(reply="PENDING", url="", success=1, tid=TID, refid=REFID, retcode=0)


def refusal(retcode: str) -> bytes:
    """Return the reply to a payment request that K-Pay did not take."""
    return _body(reply="REFUSED", success=0, tid=0, refid=REFID, retcode=retcode)


def _status(truth: Truth) -> bytes:
    if truth is Truth.UNKNOWN:
        return _body(tid="", refid="", momtransactionid="", statusid="611", statusdesc="Transaction not found")
    paid = MOMTRANSACTIONID if truth is Truth.PAID else ""
    return _body(tid=TID, refid=REFID, momtransactionid=paid, statusid=_STATUSIDS[truth], statusdesc=truth)


def _body(**members: object) -> bytes:
    return json.dumps(members).encode()
