"""What K-Pay's words mean for a payment: the one place where its messages become `Evidence`.

Three dialects: the reply to a payment request, the answer to checkstatus, the postback. Each function is pure and
total; whatever is contradictory or not understood becomes doubt, never a guess.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from app.domain import Evidence, Failure, FailureCode, Says, Source
from app.kpay import codes
from app.kpay.wire import Message

_SERVER_FAILED = 500


def of_pay_reply(message: Message | None, refid: str, http_status: int = 200) -> Evidence:
    """Read the reply to a payment request (guide, "Payment request"; `retcode` 0 is accepted, or paid at once).

    A server that failed (5xx) has not refused, whatever it says: it may have failed after it had taken the request in.
    """
    if message is None:
        return in_doubt("K-Pay's answer could not be read")
    if message.retcode is None and message.statusid in codes.RETCODES:
        # One table serves both members (guide, "KPay error / return code").
        message = replace(message, retcode=message.statusid, statusid=None)
    says = _pay_reply_says(message, refid)
    if http_status >= _SERVER_FAILED and says in (Says.REFUSED, Says.REFUSED_AFTER_TID):
        says = Says.IN_DOUBT
    return _evidence(Source.GATEWAY_REPLY, says, message, refid, duplicate=message.retcode == "608")


def _pay_reply_says(message: Message, refid: str) -> Says:
    if not _is_of(message, refid):
        return Says.IN_DOUBT
    about = codes.says_of_statusid(message.statusid)
    if message.retcode not in (None, codes.ACCEPTED):
        contradicted = message.success or about in (Says.PAID, Says.PENDING)
        return Says.IN_DOUBT if contradicted else codes.RETCODES.get(message.retcode, (Says.IN_DOUBT,))[0]
    if message.success is False and about is not Says.NOT_PAID:
        return Says.IN_DOUBT
    if about in (Says.PAID, Says.NOT_PAID):
        # An outcome counts only where K-Pay names the payment that it is of.
        return about if message.refid == refid else Says.IN_DOUBT
    accepted = about is Says.PENDING or (message.retcode == codes.ACCEPTED and message.statusid is None)
    return Says.PENDING if accepted else Says.IN_DOUBT


def of_checkstatus(message: Message | None, refid: str, asked_at: datetime) -> Evidence:
    """Read the answer to a checkstatus (guide, "Check transaction status"): `statusid` tells, a `retcode` refuses."""
    if message is None:
        return question_failed("K-Pay's answer could not be read", asked_at)
    says = _checkstatus_says(message, refid)
    evidence = _evidence(Source.CHECKSTATUS, says, message, refid, asked_at=asked_at)
    # What names no payment may be heard ("not found"), but nothing is bound by it.
    return evidence if message.refid == refid else replace(evidence, tid=None, momtransactionid=None, payaccount=None)


def _checkstatus_says(message: Message, refid: str) -> Says:
    if message.ambiguous or message.retcode not in (None, codes.ACCEPTED, codes.NOT_FOUND):
        return Says.QUESTION_REFUSED
    says = codes.says_of_statusid(message.statusid)
    if message.retcode == codes.NOT_FOUND:
        says = Says.NOT_FOUND if message.statusid in (None, codes.NOT_FOUND) else Says.NOTHING
    if says is Says.QUESTION_REFUSED:
        return says
    if message.statusid is None and message.retcode == codes.ACCEPTED:
        says = Says.PENDING  # "No error. Transaction being processed"
    if says is Says.NOT_FOUND:
        return says if _is_of(message, refid) else Says.NOTHING
    # An answer about another payment, or about none: whatever it says, it is not said of this one.
    contradicted = says is Says.PAID and message.success is False
    return Says.NOTHING if message.refid != refid or contradicted else says


def _is_of(message: Message, refid: str) -> bool:
    """Whether a message is about `refid`, or names no payment, and does not contradict itself about it."""
    return not message.ambiguous and message.refid in (None, refid)


def of_postback(message: Message | None, *, hint: bool) -> Evidence:
    """Read a postback. The caller has seen to it that it came by an authentic path and names the right refid."""
    if message is None:
        return Evidence(Source.POSTBACK, Says.NOTHING, hint=True)
    says = codes.says_of_statusid(message.statusid)
    if message.ambiguous or says in (Says.QUESTION_REFUSED, Says.NOT_FOUND):
        says = Says.NOTHING
    return _evidence(Source.POSTBACK, says, message, message.refid, hint=hint)


def in_doubt(why: str) -> Evidence:
    """Return the evidence of a payment request that may have landed."""
    return Evidence(Source.GATEWAY_REPLY, Says.IN_DOUBT, note=why)


def not_sent(why: str) -> Evidence:
    """Return the evidence of a payment request that cannot have landed."""
    failure = Failure(FailureCode.GATEWAY_UNREACHABLE, why)
    return Evidence(Source.GATEWAY_REPLY, Says.NOT_SENT, note=why, failure=failure)


def question_failed(why: str, asked_at: datetime) -> Evidence:
    """Return the evidence of a checkstatus that brought no usable answer: it says nothing of the payment."""
    return Evidence(Source.CHECKSTATUS, Says.QUESTION_REFUSED, note=why, asked_at=asked_at)


def refuses_us(evidence: Evidence) -> bool:
    """Whether K-Pay refuses this service itself (user, password, address, retailer), not one payment or question."""
    refusals = codes.REFUSES_US if evidence.source is Source.CHECKSTATUS else codes.REFUSES_US - codes.AMBIGUOUS
    return bool(refusals & {evidence.retcode, evidence.statusid})


def refuses_questions(evidence: Evidence) -> bool:
    """Whether K-Pay found a question incomplete: one may be, several in a row are a fault of ours."""
    return codes.INCOMPLETE in (evidence.retcode, evidence.statusid)


def _failure(message: Message, says: Says) -> Failure | None:
    if says in (Says.REFUSED, Says.REFUSED_AFTER_TID):
        _, code, meaning = codes.RETCODES[str(message.retcode)]
        detail = message.statusdesc or message.reply or meaning
        return Failure(codes.failure_code(detail, default=code), detail, message.retcode)
    if says is Says.NOT_PAID:
        detail = message.statusdesc or message.reply or f"statusid {message.statusid}"
        return Failure(codes.failure_code(detail), detail, message.statusid)
    return None


def _evidence(source: Source, says: Says, message: Message, refid: str | None, **more: Any) -> Evidence:  # noqa: ANN401 - Evidence's own fields
    """Return what a message says, and its words only where they are sure to be about this payment."""
    sure = _is_of(message, refid or "")
    return Evidence(
        source,
        says,
        tid=message.tid if sure else None,
        momtransactionid=message.momtransactionid if sure else None,
        payaccount=message.payaccount if sure else None,
        checkout_url=message.url if sure else None,
        statusid=message.statusid if sure else None,
        statusdesc=message.statusdesc or message.reply if sure else None,
        retcode=message.retcode if sure else None,
        note=None if sure else "K-Pay's answer contradicts itself or is about another payment",
        failure=_failure(message, says),
        **more,
    )
