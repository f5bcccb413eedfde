"""The listener row by row: what is acknowledged is stored, and a postback decides nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx2
import pytest

from app.macs import RETURL, Macs
from tests.support import (
    SECRET_KEY,
    Json,
    Service,
    Simulator,
    at_once,
    bodies,
    eventually,
    hush,
    metric,
    new_refid,
    query,
    spoken,
)

NEVER_ACTS = "250780000005"
OTHER_METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture
def pending(service: Service) -> Json:
    """Start a payment that stays pending, and of which K-Pay sends no postback by itself."""
    return service.start(NEVER_ACTS)


def words(payment: Json, **changes: object) -> Json:
    """Return a postback that says `payment` was paid, with `changes`; a change to None leaves the member out."""
    said: Json = {"tid": payment["tid"], "refid": payment["refid"], "momtransactionid": f"m{new_refid()}"}
    said |= {"payaccount": "0780000005", "statusid": "01", "statusdesc": "Successfully processed transaction."}
    return {name: value for name, value in (said | changes).items() if value is not None}


def post(service: Service, refid: str, body: Json | bytes, **headers: str) -> httpx2.Response:
    """Send a postback by the authentic path of `refid`, as K-Pay would: without a key."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{service.url}{service.returl(refid)}", content=content, headers=headers, trust_env=False)


def acknowledged(answer: httpx2.Response, tid: str, refid: str) -> bool:
    """Whether this is K-Pay's "Response expected"."""
    return (answer.status_code, answer.json()) == (200, {"tid": tid, "refid": refid, "reply": "OK"})


def turned_away(answer: httpx2.Response, refid: str) -> bool:
    """Whether this is the answer to a postback that could not be understood."""
    return (answer.status_code, answer.json()) == (400, {"tid": "", "refid": refid, "reply": "ERROR"})


def checked_again(service: Service, refid: str, since: str | None) -> bool:
    """Whether K-Pay has been asked since `since`."""
    return bool(service.read(refid)["checked_at"] != since)


@pytest.mark.parametrize("statusid", ["01", "02", "03", "0", "682", "611", "600", "made up", "", None])
def test_whatever_it_says_is_stored_and_acknowledged(statusid: str | None, pending: Json, service: Service) -> None:
    """An authentic, readable postback is 200 OK, its bytes are kept, and it alone makes no payment succeed or fail."""
    refid, body = pending["refid"], json.dumps(words(pending, statusid=statusid)).encode()
    assert acknowledged(post(service, refid, body), pending["tid"], refid)
    assert bodies(service, refid) == [body]
    assert service.http.post(f"/v1/payments/{refid}/check").json()["status"] == "pending"
    assert [event["statusid"] for event in service.events(refid) if event["source"] == "postback"][-1:] == [
        statusid or None
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"refid": "REFID", "statusid": 1, "tid": "TID", "momtransactionid": 616730887}',
        b'{"tid":"TID","refid":"REFID","momtransactionid":"1","payaccount":"","statusid":"01","statusdesc":"ok",}',
        b'{"tid":"TID","refid":"REFID","momtransactionid":"1","statusid":"01"}}',
        b'{"tid": 0, "refid": "REFID", "statusid": "01"}',
        b'{"refid": "REFID", "statusid": "01"}',
        b'{"tid":"TID\n","refid":"REFID",\r\n"statusdesc":"two\nlines","statusid":"01"}',
        b'{"refid": "REFID", "tid": "TID", "statusid": "01", "new member": [1, {"a": null}]}',
    ],
    ids=["numbers", "trailing_comma", "brace_too_many", "tid_0", "no_tid", "line_breaks", "unknown_member"],
)
def test_fault_17_kpays_own_quirks_are_read(body: bytes, pending: Json, service: Service, simulator: Simulator) -> None:
    """What K-Pay's own guide shows is read: numbers, commas, braces and line breaks too many, tid 0, and more."""
    refid = pending["refid"]
    simulator.settle(refid, "01", postback=False)
    body = body.replace(b"TID", pending["tid"].encode()).replace(b"REFID", refid.encode())
    assert acknowledged(post(service, refid, body), pending["tid"] if pending["tid"].encode() in body else "", refid)
    assert bodies(service, refid) == [body]
    assert service.read(refid, wait=10)["status"] == "succeeded"


@pytest.mark.parametrize(
    "garnish",
    [b"%s", b"\xef\xbb\xbf%s", b" \r\n\t%s \n", b"%s}", b"%s trailing words", b"%s\0\0"],
    ids=["plain", "byte_order_mark", "white_space", "brace_too_many", "words_after", "zeros_after"],
)
@pytest.mark.parametrize(
    "content_type", ["", "application/json", "text/plain", "text/html", "application/octet-stream"]
)
def test_fault_16_json_is_read_whatever_it_calls_itself(
    garnish: bytes, content_type: str, pending: Json, service: Service
) -> None:
    """A postback is read by what it is, whatever content type it names and whatever stands around its JSON."""
    headers = {"Content-Type": content_type} if content_type else {}
    body = garnish % json.dumps(words(pending)).replace("}", ",}").encode()
    assert acknowledged(post(service, pending["refid"], body, **headers), pending["tid"], pending["refid"])
    assert bodies(service, pending["refid"]) == [body]


def test_fault_16_a_form_is_read_as_a_form(pending: Json, service: Service) -> None:
    """A postback that comes as a form is read and acknowledged, also when it does not say that it is one."""
    body = urlencode(words(pending)).encode()
    for content_type in ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8", ""):
        headers = {"Content-Type": content_type} if content_type else {}
        assert acknowledged(post(service, pending["refid"], body, **headers), pending["tid"], pending["refid"])


@pytest.mark.parametrize("kind", ["garbled", "empty", "array", "no_refid", "other_refid"])
def test_what_is_not_understood_is_kept_and_asked_about(kind: str, pending: Json, service: Service) -> None:
    """An authentic path with a body that is unreadable or of another refid: 400, kept, and K-Pay is asked."""
    said = {
        "garbled": b'{"tid": "A1", "refid"',
        "empty": b"",
        "array": b"[]",
        "no_refid": json.dumps(words(pending, refid=None)).encode(),
        "other_refid": json.dumps(words(pending, refid=new_refid())).encode(),
    }[kind]
    refid = pending["refid"]
    before = service.http.post(f"/v1/payments/{refid}/check").json()["checked_at"]
    assert turned_away(post(service, refid, said), refid)
    assert bodies(service, refid) == [said]
    eventually(lambda: checked_again(service, refid, before))
    assert service.read(refid)["status"] == "pending"


def test_fault_06_another_tid_is_turned_away_and_looked_at(pending: Json, service: Service) -> None:
    """A postback with another tid than the payment's is 400 and kept, binds nothing, and asks K-Pay and a person."""
    refid = pending["refid"]
    before = service.http.post(f"/v1/payments/{refid}/check").json()["checked_at"]
    assert turned_away(post(service, refid, words(pending, tid="A999")), refid)
    assert len(bodies(service, refid)) == 1
    eventually(lambda: checked_again(service, refid, before))
    now = service.read(refid)
    assert (now["status"], now["tid"], now["review_reasons"]) == ("pending", pending["tid"], ["tid_mismatch"])
    assert "payment.needs_review" in [event["type"] for event in service.events(refid)]


@pytest.mark.parametrize("mac", ["other_refid", "other_key", "other_purpose", "cut", "longer", "upper_case", "junk"])
def test_fault_05_a_mac_opens_its_own_path_only(mac: str, pending: Json, service: Service) -> None:
    """A mac opens the one path it was made for: any other is 404 and counted, stores nothing and tells nothing."""
    refid, right = pending["refid"], Macs([SECRET_KEY]).make(RETURL, pending["refid"])
    wrong = {
        "other_refid": Macs([SECRET_KEY]).make(RETURL, new_refid()),
        "other_key": Macs(["x" * 40]).make(RETURL, refid),
        "other_purpose": Macs([SECRET_KEY]).make("return", refid),
        "cut": right[:-1],
        "longer": f"{right}A",
        "upper_case": right.swapcase(),
        "junk": "%00%ff%F0%9F%8E%89",
    }[mac]
    before = metric(service, 'kpayd_postbacks_total{answer="wrong_mac"}')
    answer = httpx2.post(f"{service.url}/kpay/returl/{refid}/{wrong}", json=words(pending), trust_env=False)
    assert answer.status_code == 404
    assert refid not in answer.text
    assert pending["tid"] not in answer.text
    assert bodies(service, refid) == []
    assert service.events(refid)[-1]["source"] != "postback"
    assert metric(service, 'kpayd_postbacks_total{answer="wrong_mac"}') == before + 1


def test_fault_13_a_payment_that_is_not_in_the_database(service: Service) -> None:
    """A true mac for a payment that is not there (a restored backup) is kept, told OK and alarmed; a wrong one 404."""
    refid, wrong_mac = new_refid(), 'kpayd_postbacks_total{answer="wrong_mac"}'
    unknown, turned = metric(service, "kpayd_postbacks_unknown_payment_total"), metric(service, wrong_mac)
    said = {"tid": "A1", "refid": refid, "momtransactionid": "616730887", "statusid": "01"}
    assert acknowledged(post(service, refid, said), "A1", refid)
    assert acknowledged(post(service, refid, said), "A1", refid)
    assert turned_away(post(service, refid, b"garbled"), refid)
    assert service.http.post(service.returl(refid, mac="x" * 27), json=said | {"tid": "A2"}).status_code == 404
    assert bodies(service, refid) == [json.dumps(said).encode(), b"garbled"]
    assert metric(service, "kpayd_postbacks_unknown_payment_total") == unknown + 3
    assert metric(service, wrong_mac) == turned + 1
    assert f'"refid": "{refid}"' in service.process.words
    assert service.http.get(f"/v1/payments/{refid}").status_code == 404


def test_fault_02_a_refusal_does_not_unpay(pending: Json, service: Service, simulator: Simulator) -> None:
    """A postback that says not paid never unpays: it is acknowledged, and a person is to look."""
    refid = pending["refid"]
    simulator.settle(refid, "01", postback=False)
    paid = service.http.post(f"/v1/payments/{refid}/check").json()
    assert acknowledged(post(service, refid, words(pending, statusid="02", momtransactionid="")), paid["tid"], refid)
    now = service.http.post(f"/v1/payments/{refid}/check").json()
    assert (now["status"], now["review_reasons"]) == ("succeeded", ["contradiction"])
    kept = ("tid", "momtransactionid", "payaccount", "statusid", "statusdesc", "final_at", "failure")
    assert [now[name] for name in kept] == [paid[name] for name in kept]


def test_a_postback_during_a_check_wakes_another_one(pending: Json, service: Service, simulator: Simulator) -> None:
    """What comes while K-Pay is being asked is asked about right after that, and not when a lease has run out."""
    refid = pending["refid"]
    leased = "SELECT FROM payments WHERE refid = $1 AND leased_until > now()"
    simulator.behave(latency=0.5)
    try:
        post(service, refid, words(pending))
        eventually(lambda: query(service.database_url, leased, refid), every=0.01)
        assert post(service, refid, words(pending)).status_code == 200
        before = service.read(refid)["checked_at"]
        eventually(lambda: checked_again(service, refid, before), every=0.02)
    finally:
        simulator.behave(latency=0)
    simulator.settle(refid, "01")
    assert service.read(refid, wait=5)["status"] == "succeeded"


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_a_postback_is_a_post(method: str, pending: Json, service: Service) -> None:
    """Any other method is 405 with what is allowed, and stores nothing."""
    content = json.dumps(words(pending)).encode()
    answer = service.http.request(method, service.returl(pending["refid"]), content=content)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert bodies(service, pending["refid"]) == []


def test_fault_03_100_times_the_same_is_one_effect(pending: Json, service: Service) -> None:
    """The same postback 100 times at once and once later is one effect, and each of them is told OK."""
    refid, body = pending["refid"], json.dumps(words(pending, statusid="02", momtransactionid="")).encode()
    said = at_once(service.url, [spoken("POST", service.returl(refid), body)] * 100)
    assert Counter((each.status, each.json()["reply"]) for each in said) == {(200, "OK"): 100}
    assert post(service, refid, body).status_code == 200
    assert bodies(service, refid) == [body]
    assert [event["source"] for event in service.events(refid)].count("postback") == 1


def test_postbacks_that_arrive_together_share_commits(service: Service) -> None:
    """Of 60 postbacks for as many payments at once all are stored, by fewer commits than there are postbacks."""
    payments = [service.start(NEVER_ACTS) for _ in range(60)]
    commits, stored = metric(service, "kpayd_postback_batch_count"), metric(service, "kpayd_postback_batch_sum")
    requests = [spoken("POST", service.returl(p["refid"]), json.dumps(words(p)).encode()) for p in payments]
    assert {each.status for each in at_once(service.url, requests)} == {200}
    assert metric(service, "kpayd_postback_batch_sum") - stored >= 60
    assert metric(service, "kpayd_postback_batch_count") - commits < 45
