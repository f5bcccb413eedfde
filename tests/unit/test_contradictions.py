"""Words of K-Pay that contradict themselves or speak of another payment: doubt or nothing, never a guess."""

import json
from typing import Any

import pytest

from app.domain import Says, Status, transition
from app.kpay import meaning
from app.kpay.wire import Message, read

from .support import REFID, RULES, at, payment

OTHER = {"refid": "R2", "tid": "A2", "momtransactionid": "M2"}


def message(members: dict[str, Any]) -> Message | None:
    """Return a message about R1 unless it names another."""
    return read(json.dumps({"refid": REFID, **members}).encode())


@pytest.mark.parametrize(
    "members",
    [
        {"retcode": 0, "success": 0},
        {"retcode": 0, "success": 0, "statusid": "01"},
        {"retcode": 0, "success": 0, "statusid": "03"},
        {"success": 0, "statusid": "01"},
        {"retcode": 0, "statusid": "611"},
        {"retcode": 0, "statusid": "600"},
        {"retcode": 0, "statusid": "words"},
        {"retcode": 605, "success": 1},
        {"retcode": 605, "statusid": "01"},
        {"retcode": 606, "statusid": "01"},
        {"retcode": 609, "statusid": "03"},
        {"success": 1},
        {"reply": "PENDING"},
        {},
        {"retcode": 0, **OTHER},
        {"retcode": 605, **OTHER},
        {"statusid": "01", **OTHER},
        {"statusid": "01", "refid": ""},
        {"statusid": "02", "refid": ""},
    ],
    ids=json.dumps,
)
def test_reply_in_doubt(members: dict[str, Any]) -> None:
    """A reply to a payment request that contradicts itself, or is of another payment, leaves the outcome in doubt."""
    assert meaning.of_pay_reply(message(members), REFID).says is Says.IN_DOUBT


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"retcode": 0, "refid": ""},
        {"success": 1},
        {"statusid": "01", "refid": ""},
        {"statusid": "01", **OTHER},
        {"statusid": "02", **OTHER},
        {"statusid": "03", **OTHER},
        {"statusid": "611", **OTHER},
        {"retcode": 611, **OTHER},
        {"retcode": 611, "statusid": "01"},
        {"retcode": 611, "statusid": "02"},
        {"success": 0, "statusid": "01"},
    ],
    ids=json.dumps,
)
def test_check_without_meaning(members: dict[str, Any]) -> None:
    """An answer to checkstatus that contradicts itself, or is of another payment, says nothing of this one."""
    says = meaning.of_checkstatus(message(members), REFID, at(500)).says
    assert says in {Says.NOTHING, Says.QUESTION_REFUSED}


@pytest.mark.parametrize(
    "body",
    [b'{"refid":"R1","statusid":"01","statusid":"02"}', b"refid=R1&statusid=01&statusid=02"],
    ids=["json", "form"],
)
def test_said_twice_proves_nothing(body: bytes) -> None:
    """A member that stands twice with different values leaves a reply in doubt and says nothing elsewhere."""
    assert meaning.of_pay_reply(read(body), REFID).says is Says.IN_DOUBT
    assert meaning.of_checkstatus(read(body), REFID, at(500)).says is Says.QUESTION_REFUSED
    assert meaning.of_postback(read(body), hint=False).says is Says.NOTHING


@pytest.mark.parametrize("status", [Status.CREATED, Status.PENDING])
def test_ids_of_another_payment_are_not_bound(status: Status) -> None:
    """A reply or an answer that names another payment binds neither its tid nor its momtransactionid to this one."""
    words = message({"statusid": "01", **OTHER})
    for evidence in (meaning.of_pay_reply(words, REFID), meaning.of_checkstatus(words, REFID, at(500))):
        decision = transition(payment(status, tid=None), evidence, RULES)
        assert (decision.status, decision.tid, decision.momtransactionid) == (status, None, None)


@pytest.mark.parametrize("source", ["reply", "checkstatus", "postback"])
def test_ids_said_twice_are_not_bound(source: str) -> None:
    """A tid that stands twice, differently, is bound by nothing: neither of the two is known to be K-Pay's."""
    words = read(b'{"refid":"R1","tid":"A1","tid":"A2","statusid":"03"}')
    evidence = {
        "reply": meaning.of_pay_reply(words, REFID),
        "checkstatus": meaning.of_checkstatus(words, REFID, at(500)),
        "postback": meaning.of_postback(words, hint=False),
    }[source]
    assert transition(payment(Status.CREATED), evidence, RULES).tid is None
