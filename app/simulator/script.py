"""The words in which a behaviour is written: outcomes, postbacks, steps of a payment's life, the answer to `pay`.

Plain data: `gateway` and `payer` interpret it, and know no behaviour by name.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.simulator.codes import RETCODES, STATUSIDS
from app.simulator.wire import Writer, as_json


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is said of a payment: guide, "Post back asynchronous". `receipt` adds the momtransactionid."""

    statusid: str
    statusdesc: str
    receipt: bool = False


PENDING: Final = Outcome("03", STATUSIDS["03"])
PAID: Final = Outcome("01", "Successfully processed transaction.", receipt=True)
DECLINED: Final = Outcome("02", "Transaction declined by the payer")


@dataclass(frozen=True, slots=True)
class Post:
    """A postback. It says the truth of its moment, or `says`; `copies` of it go out at the same time."""

    says: Outcome | None = None
    write: Writer = as_json
    copies: int = 1
    other_tid: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What happens `at` so many payer delays after the request came in: truth first, then the mask, then the postback.

    `unmask` ends what `Behaviour.mask` hides.
    """

    at: float
    truth: Outcome | None = None
    post: Post | None = None
    unmask: bool = False


class Delivery(StrEnum):
    """How an answer travels."""

    WHOLE = "whole"
    DRIBBLED = "one byte per half second"
    HELD = "none for 60 s"
    CLOSED = "none, connection closed"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to `pay`. With `says` it has the shape of an immediate payment, else that of a request taken in.

    `retcode` None leaves the member out; `tid` False leaves the tid empty, as in a refusal that made no payment.
    """

    retcode: int | None = 0
    words: str = ""
    says: Outcome | None = None
    comtime: bool = False
    tid: bool = True
    wrong_refid: bool = False
    status: int = 200
    write: Writer = as_json
    delivery: Delivery = Delivery.WHOLE

    @property
    def reply(self) -> str:
        """The member `reply`: `words`, or what the guide says of the retcode."""
        return self.words or (RETCODES.get(self.retcode, "Unknown error") if self.retcode else "PENDING")


TAKEN: Final = Reply()
ORDINARY_LIFE: Final = (Step(1, PAID, Post()),)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """All that one payment does.

    `recorded` False: the ledger never hears of it, and checkstatus says 611. `truth` is what it is at once, `life` what
    comes then. `reply_last` answers `pay` only after life and its postbacks are over. `mask` is what checkstatus says
    instead of the truth, until a step unmasks it or it was asked `mask_asks` times. `check` writes the answers of
    checkstatus; a `tid_prefix` of "" makes a tid of digits alone.
    """

    number: str
    summary: str
    recorded: bool = True
    truth: Outcome = PENDING
    reply: Reply = TAKEN
    life: tuple[Step, ...] = ORDINARY_LIFE
    reply_last: bool = False
    mask: Outcome | None = None
    mask_asks: int | None = None
    check: Writer = as_json
    tid_prefix: str = "A"

    @property
    def end(self) -> Outcome:
        """What the ledger says when life is over."""
        return next((step.truth for step in reversed(self.life) if step.truth), self.truth)

    @property
    def posts(self) -> int:
        """How many postbacks go out, if each is answered at first."""
        return sum(step.post.copies for step in self.life if step.post)
