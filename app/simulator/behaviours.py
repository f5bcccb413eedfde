"""The magic numbers: which msisdn makes a payment do what. One table, and the Markdown that is made of it.

A msisdn that ends in `0000NNN` (250780000NNN, 0780000NNN, 250730000NNN) chooses behaviour NNN; every other one, and
every number that is not in the table, is an ordinary success, unless a card decides: `AT_CHECKOUT`, `by_token`.
`python -m app.simulator.behaviours` prints the table.
"""

import re
import sys
from dataclasses import replace
from typing import Final

from app.simulator import wire
from app.simulator.codes import RETCODES, STATUSIDS
from app.simulator.script import DECLINED, PAID, PENDING, Behaviour, Delivery, Outcome, Post, Reply, Step

_MAGIC: Final = re.compile(r"0000(\d{3})\Z", re.ASCII)

_NO_FUNDS: Final = Outcome("02", "LOW_BALANCE_OR_PAYEE_LIMIT_REACHED_OR_NOT_ALLOWED: insufficient funds")
_INTERNAL: Final = Outcome("682", STATUSIDS["682"])
_CANCELLED: Final = Outcome("02", "Transaction cancelled by the payer")
_REFUSED: Final = Outcome("02", "TARGET_AUTHORIZATION_ERROR")
_MOMO_FAILED: Final = Outcome("02", RETCODES[607])
_NOT_FOUND: Final = Outcome("611", RETCODES[611])
_QUESTION_REFUSED: Final = Outcome("602", RETCODES[602])
_PAID_NO_RECEIPT: Final = Outcome("01", PAID.statusdesc)
_DECLINED_RECEIPT: Final = Outcome("02", DECLINED.statusdesc, receipt=True)

_POST: Final = Post()


def _refusal(number: str, retcode: int, summary: str) -> Behaviour:
    """Make a refusal that leaves no trace in the ledger."""
    return Behaviour(number, summary, recorded=False, reply=Reply(retcode, tid=False), life=())


_ALL: Final = (
    # What payers do.
    Behaviour("000", "the payer pays"),
    Behaviour("001", "the payer declines", life=(Step(1, DECLINED, _POST),)),
    Behaviour("002", "the payer has insufficient funds", life=(Step(1, _NO_FUNDS, _POST),)),
    Behaviour("003", "fails with a code that no table lists", life=(Step(1, _INTERNAL, _POST),)),
    Behaviour("004", "the payer cancels", life=(Step(1, _CANCELLED, _POST),)),
    Behaviour("005", "the payer never acts: pending for ever, no postback", life=()),
    Behaviour("006", "a slow payer: pays after 10 payer delays", life=(Step(10, PAID, _POST),)),
    Behaviour(
        "007",
        "paid at once: the answer itself says 01, no postback",
        truth=PAID,
        reply=Reply(says=Outcome("01", "SUCCESSFUL", receipt=True)),
        life=(),
    ),
    Behaviour(
        "008",
        "paid at once, answered like tokenpay: no retcode, a `}` too many, no postback",
        truth=PAID,
        reply=Reply(None, says=Outcome("01", "APPROVED", receipt=True), comtime=True, write=wire.one_brace_too_many),
        life=(),
    ),
    # Postbacks and checkstatus, wrong or late.
    Behaviour("010", "lost postback: paid, only checkstatus tells", life=(Step(1, PAID),)),
    Behaviour("011", "late postback: paid at once, told 5 payer delays later", truth=PAID, life=(Step(5, post=_POST),)),
    Behaviour(
        "012",
        "postback twice at the same time, and once more a payer delay later",
        life=(Step(1, PAID, Post(copies=2)), Step(2, post=_POST)),
    ),
    Behaviour(
        "013",
        "postback 02, then 01; the truth is paid",
        life=(Step(1, PAID, Post(DECLINED)), Step(2, post=_POST)),
    ),
    Behaviour(
        "014",
        "postback 01, then 02; the truth is paid",
        life=(Step(1, PAID, _POST), Step(2, post=Post(DECLINED))),
    ),
    Behaviour(
        "015",
        "false postback: says 01 with a momtransactionid, the truth stays pending",
        life=(Step(1, post=Post(PAID)),),
    ),
    Behaviour("016", "postback with another tid", life=(Step(1, PAID, Post(other_tid=True)),)),
    Behaviour("017", "postback is JSON cut short", life=(Step(1, PAID, Post(write=wire.cut_short)),)),
    Behaviour("018", "postback is a form", life=(Step(1, PAID, Post(write=wire.as_form)),)),
    Behaviour(
        "019",
        "postback is text/plain: byte-order mark, line break after the tid, trailing comma, a `}` too many",
        life=(Step(1, PAID, Post(write=wire.all_quirks)),),
    ),
    Behaviour(
        "020",
        "postback before the answer: paid at once, `pay` is answered after the postback was",
        life=(Step(0, PAID, _POST),),
        reply_last=True,
    ),
    Behaviour(
        "021",
        "late success: 02, told by postback and checkstatus; 3 payer delays later 01, and a postback again",
        life=(Step(1, DECLINED, _POST), Step(4, PAID, _POST)),
    ),
    Behaviour("022", "paid, with an empty momtransactionid", life=(Step(1, _PAID_NO_RECEIPT, _POST),)),
    Behaviour("023", "failed, with a momtransactionid", life=(Step(1, _DECLINED_RECEIPT, _POST),)),
    Behaviour(
        "024",
        "checkstatus lags: paid and told by postback, checkstatus says 03 for 3 payer delays more",
        life=(Step(1, PAID, _POST), Step(4, unmask=True)),
        mask=PENDING,
    ),
    Behaviour(
        "025",
        "checkstatus says 611 for 3 payer delays, although accepted; then paid",
        life=(Step(3, PAID, _POST, unmask=True),),
        mask=_NOT_FOUND,
    ),
    # The request's answer goes astray.
    Behaviour("030", "no answer for 60 s, taken in", reply=Reply(delivery=Delivery.HELD)),
    Behaviour("031", "no answer for 60 s, not taken in", recorded=False, reply=Reply(delivery=Delivery.HELD), life=()),
    Behaviour("032", "connection closed without an answer, taken in", reply=Reply(delivery=Delivery.CLOSED)),
    Behaviour(
        "033",
        "connection closed without an answer, not taken in",
        recorded=False,
        reply=Reply(delivery=Delivery.CLOSED),
        life=(),
    ),
    Behaviour("034", "HTML on HTTP 502, taken in", reply=Reply(status=502, write=wire.html_page)),
    Behaviour(
        "035",
        "HTML on HTTP 500, not taken in",
        recorded=False,
        reply=Reply(status=500, write=wire.html_page),
        life=(),
    ),
    Behaviour("036", "the answer is JSON cut short, taken in", reply=Reply(write=wire.cut_short)),
    Behaviour("037", "the answer comes one byte per half second", reply=Reply(delivery=Delivery.DRIBBLED)),
    Behaviour("038", "HTTP 200 with an empty body, taken in", reply=Reply(write=wire.nothing)),
    Behaviour("039", "the answer has another refid, taken in", reply=Reply(wrong_refid=True)),
    # Refusals, true and false.
    Behaviour(
        "040",
        "refused 606 with a tid, with line breaks inside url and tid as in the guide",
        truth=_REFUSED,
        reply=Reply(606, _REFUSED.statusdesc, write=wire.raw_newlines),
        life=(),
    ),
    Behaviour("041", "refused 607 with a tid", truth=_MOMO_FAILED, reply=Reply(607), life=()),
    Behaviour(
        "042",
        "refused 606 with a tid, but paid after 3 payer delays",
        truth=_REFUSED,
        reply=Reply(606, _REFUSED.statusdesc),
        life=(Step(3, PAID, _POST),),
    ),
    Behaviour("043", "refused 608 although new, and taken in: the request landed twice", reply=Reply(608, tid=False)),
    Behaviour("044", "refused 604 although the retailer is known, and taken in", reply=Reply(604, tid=False)),
    _refusal("045", 601, "refused 601: remote user"),
    _refusal("046", 602, "refused 602: address not whitelisted"),
    _refusal("047", 605, "refused 605: retailer not enabled"),
    _refusal("048", 609, "refused 609: payment method"),
    _refusal("049", 610, "refused 610: financial institution"),
    _refusal("050", 699, "refused 699, a code that no table lists"),
    _refusal("051", 603, "refused 603: missing parameter"),
    Behaviour("052", "accepted, retcode 0, on HTTP 500", reply=Reply(status=500)),
    Behaviour(
        "053",
        "numbers for texts in tid, statusid and momtransactionid, everywhere",
        reply=Reply(write=wire.as_numbers),
        life=(Step(1, PAID, Post(write=wire.as_numbers)),),
        check=wire.as_numbers,
        tid_prefix="",
    ),
    Behaviour(
        "054",
        "checkstatus refuses the question with 602 twice, then tells",
        mask=_QUESTION_REFUSED,
        mask_asks=2,
    ),
)

BEHAVIOURS: Final = {behaviour.number: behaviour for behaviour in _ALL}

AT_CHECKOUT: Final = Behaviour("checkout", "a card payer acts at the checkout page, and not before", life=())
"""What no number chooses: a card payment whose msisdn chooses nothing."""


def by_token(outcome: Outcome) -> Behaviour:
    """Make the behaviour of a saved card's charge: over at once, no postback. Guide, "Payment request by token"."""
    reply = replace(BEHAVIOURS["008"].reply, says=outcome)
    return Behaviour("tokenpay", "a saved card is charged", truth=outcome, reply=reply, life=())


def chosen_by(msisdn: str, otherwise: Behaviour = BEHAVIOURS["000"]) -> Behaviour:
    """Find the behaviour that a msisdn chooses; `otherwise` where it chooses none."""
    magic = _MAGIC.search(msisdn)
    return BEHAVIOURS.get(magic[1], otherwise) if magic else otherwise


def rows() -> list[dict[str, str]]:
    """List the table in words: msisdn, what it does, K-Pay's answer, the number of postbacks, the truth in the end."""
    return [
        {
            "msisdn": f"...0000{b.number}",
            "does": b.summary,
            "answer": _in_words(b.reply),
            "postbacks": str(b.posts),
            "end": b.end.statusid if b.recorded else "not recorded",
        }
        for b in BEHAVIOURS.values()
    ]


def markdown() -> str:
    """Write the table in Markdown."""
    head = ("msisdn", "does", "answer to `pay`", "postbacks", "in the ledger, in the end")
    lines = [head, ("---",) * len(head), *(tuple(row.values()) for row in rows())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _in_words(reply: Reply) -> str:
    if reply.delivery in {Delivery.HELD, Delivery.CLOSED}:
        return str(reply.delivery)
    if reply.write in {wire.html_page, wire.nothing}:
        return f"HTTP {reply.status}"
    said = [f"retcode {reply.retcode}"] if reply.retcode is not None else []
    said += [f"statusid {reply.says.statusid}"] if reply.says else []
    said += [f"HTTP {reply.status}"] if reply.status != 200 else []  # noqa: PLR2004
    return ", ".join(said)


if __name__ == "__main__":
    sys.stdout.write(markdown())
