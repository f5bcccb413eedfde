"""K-Pay answers, and what it says is wrong, strange or about something else; or it is not K-Pay that answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from app.simulator.codes import RETCODES
from tests.conftest import QUICK
from tests.liar import EVERY, NOT_FOUND, Liar, Lie, lie, lying
from tests.support import (
    Json,
    Service,
    Simulator,
    eventually,
    hush,
    metric,
    new_refid,
    payment,
    query,
    run_service,
    run_simulator,
)

NewDatabase = Callable[[], str]

PAYS = "250780000000"


@dataclass(frozen=True)
class Line:
    """A service, a K-Pay whose payers wait to be played by hand, and the liar between the two."""

    service: Service
    simulator: Simulator
    liar: Liar

    def check(self, refid: str) -> Json:
        """Have K-Pay asked now and return the payment after that."""
        body: Json = self.service.http.post(f"/v1/payments/{refid}/check").raise_for_status().json()
        return body

    def be_honest(self) -> None:
        """End all lies, and let the service learn that K-Pay is well."""
        self.liar.lies.clear()
        hush(self.service)
        self.service.start(PAYS)
        hush(self.service)

    @property
    def readiness(self) -> Json:
        """The body of the readiness probe; fails unless its status is 200."""
        body: Json = self.service.http.get("/readyz").raise_for_status().json()
        return body


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase) -> Iterator[Line]:
    """Run a service before a liar, and K-Pay behind it."""
    folder = tmp_path_factory.mktemp("line")
    with run_simulator(folder, payer_delay=3600) as simulator, lying(simulator.url) as liar:
        more = {"GATEWAY_URL": f"http://127.0.0.1:{liar.port}/"}
        with run_service(folder, new_database(), simulator, QUICK | more) as service:
            yield Line(service, simulator, liar)


@pytest.fixture
def line(shared: Line) -> Iterator[Line]:
    """Give the line, honest at the end."""
    yield shared
    shared.be_honest()


def test_fault_26_a_request_that_kpay_calls_a_repetition_is_asked_about(line: Line) -> None:
    """608 and 604 to a first request leave the outcome open: K-Pay's ledger decides, and 608 asks for a review."""
    for number, reviews in (("250780000043", ["duplicate_refid"]), ("250780000044", [])):
        for statusid, end in (("01", "succeeded"), ("02", "failed")):
            started = line.service.start(number)
            assert (started["status"], started["review_reasons"]) == ("created", reviews)
            line.simulator.settle(started["refid"], statusid, postback=False)
            assert line.service.read(started["refid"], wait=20)["status"] == end
            assert line.simulator.requests(started["refid"]) == 1


def test_fault_26_a_repetition_after_the_database_lost_the_payment_charges_once(line: Line) -> None:
    """A payment that the database lost and whose caller repeats the request is found again at K-Pay, charged once."""
    headers, request = {"Idempotency-Key": new_refid()}, payment(PAYS)
    lost = line.service.http.post("/v1/payments", json=request, headers=headers).json()
    forget = "WITH a AS (DELETE FROM events WHERE refid = $1), b AS (DELETE FROM bodies WHERE refid = $1), c AS"
    forget += " (DELETE FROM claims WHERE refid = $1) DELETE FROM payments WHERE refid = $1"
    query(line.service.database_url, forget, lost["refid"])
    again = line.service.http.post("/v1/payments", json=request, headers=headers)
    assert (again.status_code, again.json()["refid"]) == (201, lost["refid"])
    assert again.json()["status"] in {"created", "pending"}  # pending: a check was quicker than this answer
    line.simulator.settle(lost["refid"], "01", postback=False)
    after = line.service.read(lost["refid"], wait=20)
    assert (after["status"], after["tid"], after["review_reasons"]) == ("succeeded", lost["tid"], ["duplicate_refid"])
    assert line.simulator.requests(lost["refid"]) == 2  # of which K-Pay took in one


def test_fault_27_not_found_is_believed_after_the_grace_and_a_later_success_reopens(line: Line) -> None:
    """611 about a request in doubt is believed after `UNKNOWN_GRACE`, not before; paid later, it is `succeeded`."""
    refid = new_refid()
    line.liar.lies["checkstatus", refid] = lie(**NOT_FOUND)
    assert line.service.start("250780000034", refid=refid)["status"] == "created"  # HTML on 502, and taken in
    for _ in range(3):
        assert line.check(refid)["status"] == "created"
    end = line.service.read(refid, wait=20)
    assert (end["status"], end["failure"]["code"], end["needs_review"]) == ("failed", "not_received", False)
    grace = "SELECT extract(epoch FROM final_at - doubt_from)::float AS seconds FROM payments WHERE refid = $1"
    assert query(line.service.database_url, grace, refid)[0]["seconds"] >= float(QUICK["UNKNOWN_GRACE"])
    assert line.liar.asked(refid) >= 4
    del line.liar.lies["checkstatus", refid]
    line.simulator.settle(refid, "01")
    after = eventually(lambda: (now := line.service.read(refid))["status"] == "succeeded" and now)
    assert (after["review_reasons"], after["failure"]) == (["late_success"], None)
    assert line.simulator.requests(refid) == 1


def test_fault_27_not_found_about_an_accepted_payment_never_fails_it(line: Line) -> None:
    """611 about a payment that K-Pay has accepted does not fail it however long it lasts: it asks for a review."""
    refid = new_refid()
    line.liar.lies["checkstatus", refid] = lie(**NOT_FOUND)
    assert line.service.start(PAYS, refid=refid)["status"] == "pending"
    asked = eventually(lambda: (now := line.service.read(refid))["needs_review"] and now)
    assert (asked["status"], asked["review_reasons"]) == ("pending", ["forgotten"])
    assert line.check(refid)["status"] == "pending"
    del line.liar.lies["checkstatus", refid]
    line.simulator.settle(refid, "01", postback=False)
    assert line.service.read(refid, wait=20)["status"] == "succeeded"


def test_fault_28_an_unreadable_reply_leaves_the_outcome_to_the_ledger(line: Line) -> None:
    """HTML, 5xx, cut JSON, nothing or another refid as a reply is no refusal: 201, and K-Pay's ledger decides."""
    codes = {"034": "created", "036": "created", "038": "created", "039": "created", "052": "pending"}
    refids = {}
    for code, status in codes.items():
        started = line.service.start(f"250780000{code}")
        assert (started["status"], started["failure"]) == (status, None), code
        refids[started["refid"]] = code
    nothing = line.service.start("250780000035")  # HTML on 500, and not taken in
    assert nothing["status"] == "created"
    for refid, code in refids.items():
        line.simulator.settle(refid, "01", postback=False)
        after = line.service.read(refid, wait=20)
        assert (after["status"], after["review_reasons"]) == ("succeeded", []), code
        assert line.simulator.requests(refid) == 1, code
    assert line.service.read(nothing["refid"], wait=20)["failure"]["code"] == "not_received"


def test_fault_28_an_answer_that_is_none_says_nothing_of_the_payment(line: Line) -> None:
    """HTML, 5xx, cut JSON or another payment's success as an answer to a check changes nothing and is not logged."""
    secret = "canary-in-an-answer"
    refid = line.service.start(PAYS)["refid"]
    before = line.check(refid)
    paid: Json = {"tid": before["tid"], "refid": refid, "momtransactionid": new_refid(), "statusid": "01"}
    answers = (
        Lie(f"<html>{secret} {refid} statusid=01</html>".encode(), headers=(("Content-Type", "text/html"),)),
        Lie(f"{secret} down".encode(), 500, (("Content-Type", "text/plain"),)),
        Lie(json.dumps(paid | {"statusdesc": secret}).encode()[:-1]),
        Lie(b""),
        lie(**paid | {"refid": f"{refid}X", "tid": secret}),
        Lie(json.dumps(paid).encode().replace(b'"01"', b'"01", "statusid": "02"')),
        lie(retcode=608, refid=refid, statusid="01"),
    )
    for answer in answers:
        line.liar.lies["checkstatus", refid] = answer
        after = line.check(refid)
        told = ("status", "tid", "momtransactionid", "failure", "statusid")
        assert {name: after[name] for name in told} == {name: before[name] for name in told}, answer
    assert secret not in line.service.process.words
    bodies = query(line.service.database_url, "SELECT body FROM bodies WHERE refid = $1", refid)
    assert {answer.body for answer in answers} <= {row["body"] for row in bodies}  # kept, all the same
    line.liar.lies.clear()
    line.simulator.settle(refid, "01", postback=False)
    assert line.service.read(refid, wait=20)["status"] == "succeeded"


def test_fault_28_an_answer_that_names_no_payment_binds_nothing(line: Line) -> None:
    """A success that names no payment is not this one's: neither its tid nor its momtransactionid is taken over."""
    accepted = line.service.start(PAYS)["refid"]
    in_doubt = line.service.start("250780000034")["refid"]
    for refid in (accepted, in_doubt):
        before = line.service.read(refid)
        line.liar.lies["checkstatus", refid] = lie(tid="E0", refid="", momtransactionid=new_refid(), statusid="01")
        after = line.check(refid)
        told = ("status", "tid", "momtransactionid", "review_reasons")
        assert {name: after[name] for name in told} == {name: before[name] for name in told}


STATUSIDS = {
    "01": "succeeded",
    "02": "failed",
    "03": "pending",
    "0": "pending",
    "51": "failed",
    "607": "failed",
    "682": "failed",
    "602": "pending",
    "611": "pending",
    "00": "pending",
    "1.5": "pending",
    "PAID": "pending",
}


def test_fault_29_one_table_tells_what_a_code_means(line: Line) -> None:
    """A statusid means the same as text and as number; an unlisted number is a failure, an unlisted word nothing."""
    for statusid, status in STATUSIDS.items():
        for value in (statusid, int(statusid)) if statusid.isdecimal() else (statusid,):
            refid = new_refid()
            receipt = new_refid() if status == "succeeded" else ""
            started = line.service.start(PAYS, refid=refid)
            told = {"tid": started["tid"], "refid": refid, "momtransactionid": receipt, "statusid": value}
            line.liar.lies["checkstatus", refid] = lie(**told)
            assert line.check(refid)["status"] == status, told


REFUSALS = {"250780000045": "601", "250780000046": "602", "250780000047": "605", "250780000051": "603"}


def test_fault_30_a_request_that_kpay_refuses_for_our_sake_is_misconfigured(line: Line) -> None:
    """600 to 603 and 605 to a request are `misconfigured`, not the payer's failure, and it is sent once."""
    for number, retcode in REFUSALS.items():
        started = line.service.start(number)
        assert (started["status"], started["failure"]["code"]) == ("failed", "misconfigured")
        assert (started["failure"]["retcode"], started["failure"]["retryable"]) == (retcode, False)
        assert line.simulator.requests(started["refid"]) == 1
    line.simulator.behave(refuse_credentials=True)
    try:
        assert line.service.start(PAYS)["failure"]["retcode"] == "600"
    finally:
        line.simulator.behave(refuse_credentials=False)


@pytest.mark.parametrize("code", ["600", "601", "602", "603", "604", "605"])
def test_fault_30_a_question_that_kpay_refuses_says_nothing_of_the_payment(line: Line, code: str) -> None:
    """600 to 605 to a check leave every payment as it is and the log is told; 600 to 602 open the breaker at once."""
    refid = line.service.start(PAYS)["refid"]
    line.liar.lies["checkstatus", EVERY] = lie(reply=RETCODES[int(code)], retcode=int(code))
    for members in ({"retcode": int(code)}, {"statusid": code}):
        line.liar.lies["checkstatus", refid] = lie(refid=refid, reply=RETCODES[int(code)], **members)
        after = line.check(refid)
        assert (after["status"], after["failure"], after["needs_review"]) == ("pending", None, False)
        if code in {"600", "601", "602"}:
            assert line.readiness["gateway"]["reason"] == f"K-Pay answers {code}"
    assert f'"K-Pay answers {code}"' in line.service.process.words
    line.liar.lies.clear()
    line.simulator.settle(refid, "01", postback=False)
    assert line.check(refid)["status"] == "succeeded"


def test_fault_30_a_kpay_that_refuses_us_is_left_alone(line: Line) -> None:
    """A refusal of ourselves stops the checks of all payments but for probes; readiness stays 200 and says why."""
    refids = [line.service.start(PAYS)["refid"] for _ in range(20)]
    line.liar.lies["checkstatus", EVERY] = lie(reply=RETCODES[602], retcode=602)
    before = len(line.liar.heard)
    # Pauses of 1 and then 2 s: without them each of the twenty would be asked about every second.
    down = eventually(lambda: (now := line.readiness)["gateway"].get("next_try_in", 0) > 1.2 and now, seconds=30)
    assert len(line.liar.heard) - before <= 16 + 3  # what was under way, and the probes
    assert (down["ready"], down["gateway"]["reason"]) == (True, "K-Pay answers 602")
    assert metric(line.service, "kpayd_gateway_breaker_open") == 1
    assert {line.service.read(refid)["status"] for refid in refids} == {"pending"}
    line.liar.lies.clear()
    for refid in refids:
        line.simulator.settle(refid, "02", postback=False)
    assert {line.service.read(refid, wait=30)["status"] for refid in refids} == {"failed"}
    assert line.readiness["gateway"]["status"] == "ok"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_fault_32_a_redirect_is_not_followed(line: Line, status: int) -> None:
    """A redirect of a payment request or a check is not followed: no other server gets to see either."""
    refid = new_refid()
    with lying(line.simulator.url) as elsewhere:
        to = Lie(b"", status, (("Location", f"http://127.0.0.1:{elsewhere.port}/"),))
        line.liar.lies |= {("pay", refid): to, ("checkstatus", refid): to}
        assert line.service.start(PAYS, refid=refid)["status"] == "created"
        assert line.check(refid)["status"] == "created"
        assert elsewhere.heard == []
    assert line.liar.heard.count(("pay", refid)) == 1


CHECKOUTS = {
    "https://pay.esicia.com/checkout/A1": True,
    "https://pay.esicia.rw/checkout/A1": True,
    "http://pay.esicia.com/checkout/A1": False,
    "https://evil.example/checkout/A1": False,
    "//evil.example/checkout/A1": False,
    "https://pay.esicia.com.evil.example/": False,
    "https://pay.esicia.com@evil.example/": False,
    "https://pay.esicia.com\\@evil.example/": False,
    "https://evil.example#@pay.esicia.com/": False,
    # Browsers take a backslash for a slash, and this host is evil.example to them.
    "https://evil.example\\@pay.esicia.com/": False,
    "javascript:alert(document.domain)//pay.esicia.com": False,
    "data:text/html,pay.esicia.com": False,
}


@pytest.mark.parametrize(("url", "given"), CHECKOUTS.items(), ids=CHECKOUTS)
def test_fault_33_a_checkout_url_is_handed_on_only_to_hosts_that_are_allowed(line: Line, url: str, given: bool) -> None:  # noqa: FBT001 - a case
    """A `checkout_url` that would send the payer's browser to a foreign host is not handed on; the payment goes on."""
    refid, unseen = new_refid(), 'kpayd_gateway_unseen_total{kind="checkout_host"}'
    before = metric(line.service, unseen)
    line.liar.lies["pay", refid] = lie(reply="PENDING", url=url, success=1, tid=f"E{refid}", refid=refid, retcode=0)
    started = line.service.start(PAYS, refid=refid, pmethod="cc")
    assert started["checkout_url"] == (url if given else None)
    assert (started["status"], started["tid"]) == ("pending", f"E{refid}")
    assert metric(line.service, unseen) - before == (0 if given else 1)
