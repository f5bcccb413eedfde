"""What K-Pay's words mean: the guide's own examples, each code of its tables, and what contradicts itself."""

import json

import pytest

from app.domain import Evidence, FailureCode, Says, Source
from app.kpay import meaning
from app.kpay.wire import read

from .support import REFID, at

ASKED = at(60)


def reply(**members: object) -> Evidence:
    """Read a reply to a payment request for R1."""
    return meaning.of_pay_reply(read(json.dumps(members).encode()), REFID)


def answer(**members: object) -> Evidence:
    """Read an answer to a checkstatus for R1."""
    return meaning.of_checkstatus(read(json.dumps(members).encode()), REFID, ASKED)


def postback(*, hint: bool = True, **members: object) -> Evidence:
    """Read a postback."""
    return meaning.of_postback(read(json.dumps(members).encode()), hint=hint)


def test_guide_reply_pending() -> None:
    """The guide's first reply: accepted, with a tid and a page for the payer."""
    body = b"""{"reply":"PENDING","url":"https://pay.esicia.com/checkout/A12343983489","success":1,"authkey":"m43snbf9oi\
vnmersqh6mnl1bh5","tid":"E6974831594723691","refid":"15947234071471114","retcode":0}"""
    assert meaning.of_pay_reply(read(body), "15947234071471114") == Evidence(
        Source.GATEWAY_REPLY,
        Says.PENDING,
        tid="E6974831594723691",
        statusdesc="PENDING",
        retcode="0",
        checkout_url="https://pay.esicia.com/checkout/A12343983489",
    )


def test_guide_reply_paid_at_once() -> None:
    """The guide's second reply: paid within the request."""
    body = b"""{"tid":"E6974821594723662","refid":"15947234071471114","momtransactionid":"2785640192",\
"statusdesc":"SUCCESSFUL","statusid":"01","retcode":0}"""
    evidence = meaning.of_pay_reply(read(body), "15947234071471114")
    assert (evidence.says, evidence.tid, evidence.momtransactionid) == (Says.PAID, "E6974821594723662", "2785640192")


def test_guide_token_reply() -> None:
    """The guide's reply to a payment by token: no retcode, a brace too many, paid."""
    body = b"""{"tid":"E8538321600116364","refid":"YR1600116349","momtransactionid":"D6JFZF",\
"statusdesc":"APPROVED","comtime":"2020-09-14 22:46:11","statusid":"01"}}"""
    assert meaning.of_pay_reply(read(body), "YR1600116349").says is Says.PAID


def test_guide_reply_refused() -> None:
    """The guide's 606: refused after a tid, in K-Pay's words."""
    body = b"""{"reply":"TARGET_AUTHORIZATION_ERROR","url":"\n", "success":0, "tid":"E6974691594723427\n", \
"refid":"15947234071471114", "retcode":606}"""
    evidence = meaning.of_pay_reply(read(body), "15947234071471114")
    assert (evidence.says, evidence.tid) == (Says.REFUSED_AFTER_TID, "E6974691594723427")
    assert evidence.failure is not None
    assert evidence.failure.detail == "TARGET_AUTHORIZATION_ERROR"
    assert evidence.failure.retcode == "606"


def test_guide_postbacks() -> None:
    """The guide's postbacks: a success, and 682, a code of the payer's bank that is in no table."""
    paid = postback(tid="A1", refid=REFID, momtransactionid="616730887", payaccount="0788312934", statusid="01")
    assert (paid.says, paid.hint, paid.payaccount) == (Says.PAID, True, "0788312934")
    words = "An internal error caused the operation to fail"
    failed = postback(tid="A1", refid=REFID, momtransactionid="", statusid="682", statusdesc=words)
    assert (failed.says, failed.momtransactionid) == (Says.NOT_PAID, None)
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.detail) == (FailureCode.GATEWAY_ERROR, words)
    assert failed.failure.retcode == "682"


def test_guide_checkstatus_answers() -> None:
    """The guide's answers to checkstatus: failed, and not found with an empty refid."""
    failed = answer(tid="A1", refid=REFID, momtransactionid="", statusid="02", statusdesc="internal error")
    assert (failed.says, failed.asked_at) == (Says.NOT_PAID, ASKED)
    unknown = answer(tid="", refid="", momtransactionid="", statusid="611", statusdesc="Transaction not found")
    assert (unknown.says, unknown.statusdesc) == (Says.NOT_FOUND, "Transaction not found")


REFUSALS = {
    "600": (Says.REFUSED, FailureCode.MISCONFIGURED),
    "601": (Says.REFUSED, FailureCode.MISCONFIGURED),
    "602": (Says.REFUSED, FailureCode.MISCONFIGURED),
    "603": (Says.REFUSED, FailureCode.MISCONFIGURED),
    "604": (Says.IN_DOUBT, None),
    "605": (Says.REFUSED, FailureCode.MISCONFIGURED),
    "606": (Says.REFUSED_AFTER_TID, FailureCode.GATEWAY_ERROR),
    "607": (Says.REFUSED_AFTER_TID, FailureCode.DECLINED),
    "608": (Says.IN_DOUBT, None),
    "609": (Says.REFUSED, FailureCode.REFUSED),
    "610": (Says.REFUSED, FailureCode.REFUSED),
    "611": (Says.IN_DOUBT, None),
    "699": (Says.IN_DOUBT, None),
    "words": (Says.IN_DOUBT, None),
}


@pytest.mark.parametrize(("retcode", "expected"), REFUSALS.items(), ids=REFUSALS)
def test_fault_29_retcodes_of_the_request(retcode: str, expected: tuple[Says, FailureCode | None]) -> None:
    """Each retcode refuses the request or leaves it in doubt, as unlisted ones do; 608 alone says that it was used."""
    evidence = reply(reply="", success=0, refid=REFID, retcode=retcode)
    assert (evidence.says, evidence.failure and evidence.failure.code) == expected
    assert evidence.duplicate is (retcode == "608")
    assert meaning.refuses_us(evidence) is (retcode in {"600", "601", "602", "605"})


STATUSIDS = {
    "0": Says.PENDING,
    "01": Says.PAID,
    "02": Says.NOT_PAID,
    "03": Says.PENDING,
    **dict.fromkeys(("600", "601", "602", "603", "604", "605"), Says.QUESTION_REFUSED),
    **dict.fromkeys(("606", "607", "608", "609", "610"), Says.NOT_PAID),
    "611": Says.NOT_FOUND,
    "682": Says.NOT_PAID,
    "05": Says.NOT_PAID,
    "51": Says.NOT_PAID,
    "00": Says.NOTHING,
    "1.0": Says.NOTHING,
    "words": Says.NOTHING,
    "1\u0663": Says.NOTHING,
    "1234567": Says.NOTHING,
    "-5": Says.NOTHING,
}


@pytest.mark.parametrize(("statusid", "says"), STATUSIDS.items(), ids=map(ascii, STATUSIDS))
def test_fault_29_statusids_of_checks_and_postbacks(statusid: str, says: Says) -> None:
    """Each statusid tells of the payment; 600 to 605 refuse the question, and what is no code tells nothing."""
    assert answer(refid=REFID, tid="A1", statusid=statusid).says is says
    in_a_postback = Says.NOTHING if says in {Says.QUESTION_REFUSED, Says.NOT_FOUND} else says
    assert postback(refid=REFID, tid="A1", statusid=statusid).says is in_a_postback


@pytest.mark.parametrize("code", ["0", "01", "02", "03", "05", "51", "600", "611", "682"])
def test_fault_29_a_number_means_what_its_digits_mean_as_text(code: str) -> None:
    """A code that comes as a number, which cannot begin with a zero, means what the same code means as text."""
    assert answer(refid=REFID, tid="A1", statusid=int(code)) == answer(refid=REFID, tid="A1", statusid=code)
    assert reply(refid=REFID, tid="A1", retcode=int(code)) == reply(refid=REFID, tid="A1", retcode=str(int(code)))


@pytest.mark.parametrize("retcode", ["600", "602", "604", "605", "606", "608", "699"])
@pytest.mark.parametrize("statusid", [None, "01", "02"])
def test_retcode_refuses_the_question(retcode: str, statusid: str | None) -> None:
    """A retcode in an answer to checkstatus says nothing of the payment, whatever stands beside it."""
    assert answer(refid=REFID, retcode=retcode, statusid=statusid).says is Says.QUESTION_REFUSED


def test_not_found_by_retcode() -> None:
    """611 means not found as retcode too."""
    assert answer(refid="", retcode=611).says is Says.NOT_FOUND


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("Insufficient funds", FailureCode.INSUFFICIENT_FUNDS),
        ("NOT_ENOUGH_FUNDS", FailureCode.INSUFFICIENT_FUNDS),
        ("Cancelled by payer", FailureCode.CANCELLED),
        ("Transaction declined", FailureCode.DECLINED),
        ("Timed out", FailureCode.GATEWAY_ERROR),
        ("something else", FailureCode.OTHER),
        ("", FailureCode.OTHER),
    ],
)
def test_failure_by_k_pays_words(words: str, code: FailureCode) -> None:
    """Why a payer's bank said no is in K-Pay's words; the detail is never empty."""
    failure = answer(refid=REFID, statusid="02", statusdesc=words).failure
    assert failure is not None
    assert (failure.code, failure.detail) == (code, words or "statusid 02")


def test_question_failed() -> None:
    """Silence is an answer to no question."""
    assert meaning.of_checkstatus(None, REFID, ASKED) == meaning.question_failed(
        "K-Pay's answer could not be read", ASKED
    )


def test_no_call_speaks_of_a_payment_by_silence() -> None:
    """An unreadable reply is doubt, an unreadable postback a hint without words, a failed connect a failure."""
    assert meaning.of_pay_reply(None, REFID).says is Says.IN_DOUBT
    assert meaning.of_postback(None, hint=False) == Evidence(Source.POSTBACK, Says.NOTHING, hint=True)
    unsent = meaning.not_sent("no connection")
    assert unsent.says is Says.NOT_SENT
    assert unsent.failure is not None
    assert unsent.failure.code is FailureCode.GATEWAY_UNREACHABLE


def test_times_of_evidence() -> None:
    """Only an answer to a question carries the question's time."""
    times = [each(refid=REFID, statusid="03").asked_at for each in (reply, postback, answer)]
    assert times == [None, None, ASKED]


@pytest.mark.parametrize("retcode", ["605", "606", "609"])
def test_fault_28_a_server_that_failed_has_not_refused(retcode: str) -> None:
    """A refusal on HTTP 5xx leaves the outcome in doubt; what it accepts or calls paid is believed on any status."""
    refusal = read(f'{{"refid":"R1","retcode":{retcode}}}'.encode())
    assert meaning.of_pay_reply(refusal, "R1", 500).says is Says.IN_DOUBT
    assert meaning.of_pay_reply(refusal, "R1", 400).says is not Says.IN_DOUBT
    accepted = read(b'{"refid":"R1","retcode":0,"tid":"A1"}')
    assert meaning.of_pay_reply(accepted, "R1", 500).says is Says.PENDING


@pytest.mark.parametrize(("statusid", "says"), [("608", Says.IN_DOUBT), ("604", Says.IN_DOUBT), ("609", Says.REFUSED)])
def test_a_refusal_may_come_as_statusid(statusid: str, says: Says) -> None:
    """K-Pay's table serves both members: a reply without retcode is read by its statusid."""
    evidence = meaning.of_pay_reply(read(f'{{"refid":"R1","statusid":"{statusid}"}}'.encode()), "R1")
    assert (evidence.says, evidence.retcode) == (says, statusid)


def test_a_check_that_answers_0_alone_is_pending() -> None:
    """`0` is "Transaction being processed", as retcode too."""
    said = meaning.of_checkstatus(read(b'{"refid":"R1","retcode":0}'), "R1", at(500))
    assert said.says is Says.PENDING
