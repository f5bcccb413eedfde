"""The magic numbers: what each makes of the answer, of the postbacks, of checkstatus and of the truth."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest

from app.simulator.behaviours import BEHAVIOURS

from .support import Kpay, Postback

NEVER_ANSWERED = ("030", "031")
GONE = {"031", "033", "035", "045", "046", "047", "048", "049", "050", "051"}
"""Those that leave nothing in the ledger."""

POSTBACKS = {
    **dict.fromkeys(BEHAVIOURS.keys() - GONE, ("01",)),
    **dict.fromkeys(["005", "007", "008", "010", "040", "041"], ()),
    **dict.fromkeys(["001", "002", "004", "023"], ("02",)),
    "003": ("682",),
    "012": ("01", "01", "01"),
    "013": ("02", "01"),
    "014": ("01", "02"),
    "021": ("02", "01"),
}
"""What the postbacks say, in their order."""

TRUTH = {
    **dict.fromkeys(BEHAVIOURS.keys() - GONE, "01"),
    **dict.fromkeys(["001", "002", "004", "023", "040", "041"], "02"),
    **dict.fromkeys(["005", "015"], "03"),
    "003": "682",
}
"""What the ledger says in the end."""


@dataclass
class Played:
    """A payment whose life is over."""

    refid: str
    answer: httpx2.Response | httpx2.HTTPError
    postbacks: list[Postback]
    truth: dict[str, Any]

    @property
    def http(self) -> httpx2.Response:
        """The answer, if there was one."""
        assert isinstance(self.answer, httpx2.Response)
        return self.answer

    @property
    def postback(self) -> dict[str, Any]:
        """The first postback, read as JSON."""
        body: dict[str, Any] = json.loads(self.postbacks[0].body)
        return body


@pytest.fixture(scope="module")
def played(kpay: Kpay) -> dict[str, Played]:
    """Play every behaviour once, all at the same time."""

    def pay(number: str, order: dict[str, Any]) -> httpx2.Response | httpx2.HTTPError:
        seconds = 1.5 if number in NEVER_ANSWERED else 20
        try:
            return httpx2.post(kpay.url, json=order, auth=("kpay", "kpay"), timeout=httpx2.Timeout(20, read=seconds))
        except httpx2.HTTPError as exc:
            return exc

    # A time-out per read does not end the dribbled answer.
    orders = {number: kpay.order(number) for number in BEHAVIOURS if number != "037"}
    with ThreadPoolExecutor(len(orders)) as pool:
        answers = dict(zip(orders, pool.map(pay, orders, orders.values()), strict=True))
    refids = {number: order["refid"] for number, order in orders.items()}
    for number in POSTBACKS.keys() & refids.keys():
        kpay.postbacks(refids[number], len(POSTBACKS[number]))
    return {
        number: Played(refid, answers[number], kpay.listener.received[refid], kpay.truth(refid))
        for number, refid in refids.items()
    }


@pytest.mark.parametrize("number", sorted(TRUTH.keys() - {"037"}))
def test_life(played: dict[str, Played], kpay: Kpay, number: str) -> None:
    """Each recorded payment ends as it should, after the postbacks that it should, and checkstatus agrees."""
    payment = played[number]
    assert payment.truth["statusid"] == TRUTH[number]
    assert [(sent["statusid"], sent["status"]) for sent in payment.truth["postbacks"]] == [
        (statusid, 200) for statusid in POSTBACKS[number]
    ]
    assert len(payment.postbacks) == len(POSTBACKS[number])
    assert (payment.truth["requests"], payment.truth["behaviour"]) == (1, number)
    if number != "054":
        assert int(kpay.checkstatus(refid=payment.refid)["statusid"]) == int(TRUTH[number])


@pytest.mark.parametrize("number", sorted(GONE))
def test_not_recorded(played: dict[str, Played], kpay: Kpay, number: str) -> None:
    """What was not taken in is in no ledger, has no postback, is 611 to checkstatus, and its request was counted."""
    payment = played[number]
    assert payment.truth == {"refid": payment.refid, "requests": 1}
    assert kpay.checkstatus(refid=payment.refid)["statusid"] == "611"
    assert payment.postbacks == []


@pytest.mark.parametrize("number", ["000", "001", "003", "010", "016", "020", "024", "042", "052"])
def test_momtransactionid_only_of_the_paid(played: dict[str, Played], number: str) -> None:
    """A paid payment has a momtransactionid, another has none."""
    truth = played[number].truth
    assert bool(truth["momtransactionid"]) == (truth["statusid"] == "01")


def test_postback_is_the_guides(played: dict[str, Played]) -> None:
    """A postback of success has the guide's members, and checkstatus' answer is the same."""
    payment = played["000"]
    assert payment.postbacks[0].content_type == "application/json"
    assert payment.postback == {
        "tid": payment.http.json()["tid"],
        "refid": payment.refid,
        "momtransactionid": payment.truth["momtransactionid"],
        "payaccount": "250780000000",
        "statusid": "01",
        "statusdesc": "Successfully processed transaction.",
    }


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("001", "declined"),
        ("002", "insufficient funds"),
        ("003", "An internal error caused the operation to fail"),
        ("004", "cancelled"),
    ],
)
def test_failures_have_their_words(played: dict[str, Played], number: str, words: str) -> None:
    """A failure says why, in words that tell the failures apart, and names no payaccount."""
    assert words in played[number].postback["statusdesc"]
    assert "payaccount" not in played[number].postback


def test_paid_at_once(played: dict[str, Played]) -> None:
    """007 and 008 say 01 in the answer itself; 008 has no retcode and one brace too many."""
    answer = played["007"].http.json()
    assert (answer["statusid"], answer["retcode"]) == ("01", 0)
    assert answer["momtransactionid"] == played["007"].truth["momtransactionid"]
    text = played["008"].http.text
    assert text.endswith("}}")
    assert '"statusid":"01"' in text
    assert "retcode" not in text


def test_doubled_postback(slow_kpay: Kpay) -> None:
    """012 sends the same body three times: two at once, one a payer delay later."""
    order = slow_kpay.order("012")
    slow_kpay.send(order)
    assert len({postback.body for postback in slow_kpay.postbacks(order["refid"], 3)}) == 1
    first, second, third = (
        datetime.fromisoformat(sent["sent_at"]) for sent in slow_kpay.truth(order["refid"])["postbacks"]
    )
    assert second - first < third - second


def test_false_postback(played: dict[str, Played]) -> None:
    """015 claims a payment, with a momtransactionid, that never was."""
    assert played["015"].postback["momtransactionid"]
    assert played["015"].truth["momtransactionid"] == ""


def test_postback_with_another_tid(played: dict[str, Played]) -> None:
    """016 tells of the right refid under another tid."""
    assert played["016"].postback["tid"] != played["016"].truth["tid"]
    assert played["016"].postback["refid"] == played["016"].refid


def test_postback_garbled(played: dict[str, Played]) -> None:
    """017 sends JSON that ends in the middle."""
    with pytest.raises(json.JSONDecodeError):
        _ = played["017"].postback


def test_postback_as_a_form(played: dict[str, Played]) -> None:
    """018 sends a form."""
    (postback,) = played["018"].postbacks
    assert postback.content_type == "application/x-www-form-urlencoded"
    assert parse_qs(postback.body.decode())["statusid"] == ["01"]


def test_postback_with_all_quirks(played: dict[str, Played]) -> None:
    """019 sends the guide's quirks, and what remains without them is a success."""
    (postback,) = played["019"].postbacks
    assert postback.content_type.startswith("text/plain")
    assert postback.body.startswith(b"\xef\xbb\xbf")
    assert postback.body.endswith(b",\n}}")
    body = json.loads(postback.body.decode("utf-8-sig")[:-4] + "}")
    assert (body["tid"], body["statusid"]) == (played["019"].truth["tid"] + "\n", "01")


def test_receipts_where_they_do_not_belong(played: dict[str, Played]) -> None:
    """022 is paid without a momtransactionid, 023 failed with one."""
    assert (played["022"].postback["statusid"], played["022"].postback["momtransactionid"]) == ("01", "")
    assert played["023"].postback["statusid"] == "02"
    assert played["023"].postback["momtransactionid"]


@pytest.mark.parametrize("number", NEVER_ANSWERED)
def test_held_answer(played: dict[str, Played], number: str) -> None:
    """030 and 031 give no answer in the caller's time."""
    assert isinstance(played[number].answer, httpx2.ReadTimeout)


@pytest.mark.parametrize("number", ["032", "033"])
def test_connection_closed(played: dict[str, Played], number: str) -> None:
    """032 and 033 close the connection without one byte of an answer."""
    answer = played[number].answer
    assert isinstance(answer, httpx2.RemoteProtocolError)
    assert "without sending a response" in str(answer)


@pytest.mark.parametrize(
    ("number", "status", "content_type"),
    [("034", 502, "text/html"), ("035", 500, "text/html"), ("036", 200, "application/json"), ("038", 200, "")],
)
def test_unreadable_answer(played: dict[str, Played], number: str, status: int, content_type: str) -> None:
    """034 to 038 answer with what is no JSON."""
    answer = played[number].http
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith(content_type)
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_dribbled_answer(kpay: Kpay) -> None:
    """037 sends byte after byte, each half a second after the last, and has recorded the payment."""
    order = kpay.order("037")
    with kpay.http.stream("POST", "/", json=order) as answer:
        drops = answer.iter_raw()
        assert [next(drops), next(drops)] == [b"{", b'"']
    assert kpay.postbacks(order["refid"])


def test_wrong_refid(played: dict[str, Played]) -> None:
    """039 answers with a refid that was not asked."""
    assert played["039"].http.json()["refid"] != played["039"].refid


@pytest.mark.parametrize(
    ("number", "retcode", "with_tid"),
    [
        ("041", 607, True),
        ("042", 606, True),
        ("043", 608, False),
        ("044", 604, False),
        ("045", 601, False),
        ("046", 602, False),
        ("047", 605, False),
        ("048", 609, False),
        ("049", 610, False),
        ("050", 699, False),
        ("051", 603, False),
    ],
)
def test_refusals(played: dict[str, Played], number: str, retcode: int, *, with_tid: bool) -> None:
    """041 to 051 refuse, with the tid of the ledger or with none."""
    answer = played[number].http.json()
    assert (answer["retcode"], answer["success"], answer["url"]) == (retcode, 0, "")
    assert answer["tid"] == (played[number].truth["tid"] if with_tid else "")


def test_refusal_with_line_breaks(played: dict[str, Played]) -> None:
    """040 has raw line breaks in url and tid, as the guide prints it: readable to a lenient reader only."""
    answer = played["040"].http
    with pytest.raises(json.JSONDecodeError):
        answer.json()
    read = json.loads(answer.text, strict=False)
    assert (read["reply"], read["retcode"]) == ("TARGET_AUTHORIZATION_ERROR", 606)
    assert read["tid"] == played["040"].truth["tid"] + "\n"


def test_accepted_on_500(played: dict[str, Played]) -> None:
    """052 accepts in words and errs in its HTTP status."""
    assert (played["052"].http.status_code, played["052"].http.json()["retcode"]) == (500, 0)


def test_numbers_for_texts(played: dict[str, Played], kpay: Kpay) -> None:
    """053 sends tid, statusid and momtransactionid as numbers, and knows the tid again as a number and as a text."""
    tid = played["053"].http.json()["tid"]
    assert isinstance(tid, int)
    for asked in (tid, str(tid)):
        answer = kpay.checkstatus(tid=asked)
        assert (answer["tid"], answer["statusid"]) == (tid, 1)
        assert isinstance(answer["momtransactionid"], int)
    assert played["053"].postback["statusid"] == 1
