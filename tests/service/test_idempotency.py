"""The same request again: one payment, one prompt, whatever names it: a refid, an Idempotency-Key or an order."""

import json
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

from tests.support import Json, Said, Service, Simulator, at_once, eventually, hush, new_refid, payment, query, spoken

OTHERS: dict[str, Json] = {
    "amount": {"amount": 4201},
    "msisdn": {"msisdn": "250788312935"},
    "email": {"email": "other@example.rw"},
    "details": {"details": "order 1043"},
    "cname": {"cname": "OTHER"},
    "cnumber": {"cnumber": "77"},
    "redirecturl": {"redirecturl": "https://shop.example.rw/other"},
    "logourl": {"logourl": "https://shop.example.rw/logo.png"},
    "metadata": {"metadata": {"a": "b"}},
    "bankid": {"bankid": "63514"},
    "orderid": {"orderid": "o-of-the-second"},
}
"""Changes that make a request another one."""
NEVER_ACTS = "250780000005"
FAILS_AT_ONCE = "250780000048"


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def other(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of another API client."""
    with service.client(service.new_key("other-shop")) as http:
        yield http


def ask(http: httpx2.Client, asked: Json, key: str | None = None) -> httpx2.Response:
    """Ask for a payment, by an Idempotency-Key if there is one."""
    return http.post("/v1/payments", json=asked, headers={"Idempotency-Key": key} if key else {})


def conflict(answer: httpx2.Response, code: str, refid: str | None) -> Json:
    """Return the problem of an answer that must be a 409 naming `refid`, or no refid."""
    problem: Json = answer.json()
    assert (answer.status_code, problem["code"], problem.get("refid")) == (409, code, refid)
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(problem)
    return problem


def parallel(service: Service, asked: list[Json], **headers: str) -> list[Said]:
    """Ask for all these payments at the same moment, as the one client."""
    ours = {"authorization": f"Bearer {service.key}", "content_type": "application/json"} | headers
    return at_once(service.url, [spoken("POST", "/v1/payments", json.dumps(each).encode(), **ours) for each in asked])


def test_the_same_refid_and_content_is_the_same_payment(service: Service, simulator: Simulator) -> None:
    """A repeated request is 200 with the first one's payment, however the number is written and members ordered."""
    asked = payment(refid=new_refid(), metadata={"a": "1", "b": "2"})
    first = ask(service.http, asked)
    again = dict(reversed(list(asked.items()))) | {"msisdn": "+250 788 312 934", "metadata": {"b": "2", "a": "1"}}
    again |= {"currency": "RWF", "bankid": "63510", "cnumber": "250788312934", "orderid": None}
    for repeated in (asked, again):
        answer = ask(service.http, repeated)
        assert (first.status_code, answer.status_code) == (201, 200)
        assert answer.headers["location"] == first.headers["location"]
        assert answer.json()["created_at"] == first.json()["created_at"]
    assert simulator.requests(asked["refid"]) == 1


@pytest.mark.parametrize("change", OTHERS)
def test_a_refid_with_other_content_is_refused(change: str, service: Service, simulator: Simulator) -> None:
    """A refid means one payment for ever: with any member changed it is 409, and nothing is asked for or changed."""
    asked = payment(NEVER_ACTS, refid=new_refid())
    first = ask(service.http, asked).json()
    conflict(ask(service.http, asked | OTHERS[change]), "refid_used", asked["refid"])
    assert simulator.requests(asked["refid"]) == 1
    assert {name: service.read(asked["refid"])[name] for name in asked} == {name: first[name] for name in asked}


@pytest.mark.parametrize("change", [{}, {"amount": 1}], ids=["same", "other"])
def test_another_clients_refid_is_refused_without_a_word(change: Json, service: Service, other: httpx2.Client) -> None:
    """Who asks for a refid of another client learns that it is taken, and the same words whatever the content."""
    asked = payment(refid=new_refid())
    ask(service.http, asked)
    problem = conflict(ask(other, asked | change), "refid_used", None)
    assert asked["refid"] not in str(problem)
    assert problem["detail"] == "this refid is taken"


def test_a_failed_payments_refid_stays_its_own(service: Service, simulator: Simulator) -> None:
    """A repetition after a failure is 200 with the failed payment: K-Pay is not asked again."""
    asked = payment(FAILS_AT_ONCE, refid=new_refid())
    assert ask(service.http, asked).json()["status"] == "failed"
    answer = ask(service.http, asked)
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert simulator.requests(asked["refid"]) == 1


def test_an_idempotency_key_is_one_payment(service: Service, simulator: Simulator, other: httpx2.Client) -> None:
    """A key repeated is 200 with the first payment, with other content 409 naming it; another client's is its own."""
    key, asked = f"key {new_refid()}", payment(NEVER_ACTS)
    first = ask(service.http, asked, key)
    refid = first.json()["refid"]
    again = ask(service.http, asked, key)
    assert (first.status_code, again.status_code, again.json()["refid"]) == (201, 200, refid)
    conflict(ask(service.http, asked | {"amount": 1}, key), "idempotency_key_reused", refid)
    assert simulator.requests(refid) == 1
    theirs = ask(other, asked, key)
    assert (theirs.status_code, theirs.json()["refid"] != refid) == (201, True)


def test_a_key_and_a_refid_name_one_payment_together(service: Service, simulator: Simulator) -> None:
    """Once sent together, either of them alone finds the payment; the key with another refid is 409."""
    key, asked = new_refid(), payment(NEVER_ACTS, refid=new_refid())
    refid = asked["refid"]
    assert ask(service.http, asked, key).status_code == 201
    nameless = payment(NEVER_ACTS)
    for answer in (ask(service.http, asked, key), ask(service.http, asked), ask(service.http, nameless, key)):
        assert (answer.status_code, answer.json()["refid"]) == (200, refid)
    elsewhere = asked | {"refid": new_refid()}
    conflict(ask(service.http, elsewhere, key), "idempotency_key_reused", refid)
    conflict(ask(service.http, nameless | {"amount": 1}, key), "idempotency_key_reused", refid)
    assert service.http.get(f"/v1/payments/{elsewhere['refid']}").status_code == 404
    assert simulator.requests(refid) == 1
    assert simulator.requests(elsewhere["refid"]) == 0


def test_a_key_may_be_added_later(service: Service) -> None:
    """A key that comes with the refid of an earlier payment names that payment from then on."""
    key, asked = new_refid(), payment(NEVER_ACTS, refid=new_refid())
    assert ask(service.http, asked).status_code == 201
    assert ask(service.http, asked, key).status_code == 200
    assert ask(service.http, payment(NEVER_ACTS), key).json()["refid"] == asked["refid"]


def test_a_refused_request_uses_no_key_up(service: Service) -> None:
    """After a 422 or a 409 the key is still free for a good request."""
    key, taken = new_refid(), payment(NEVER_ACTS, refid=new_refid())
    ask(service.http, taken)
    assert ask(service.http, payment(amount=0), key).status_code == 422
    assert ask(service.http, taken | {"amount": 1}, key).status_code == 409
    assert ask(service.http, payment(NEVER_ACTS), key).status_code == 201


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a\tb", b"caf\xc3\xa9"])
def test_a_key_that_is_none_is_named(key: bytes, service: Service) -> None:
    """A key that is empty, too long or no ASCII text is 422 and starts nothing."""
    answer = service.http.post("/v1/payments", json=payment(), headers=[(b"Idempotency-Key", key)])
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["idempotency-key"]


def test_an_order_has_one_open_or_paid_payment(service: Service, simulator: Simulator, other: httpx2.Client) -> None:
    """A second request for an open or a paid order is 409 with the first one's refid; other clients have their own."""
    asked = payment(NEVER_ACTS, orderid=f"o-{new_refid()}")
    refid = ask(service.http, asked).json()["refid"]
    conflict(ask(service.http, asked), "order_open", refid)
    conflict(ask(service.http, asked | {"refid": new_refid(), "amount": 1}), "order_open", refid)
    assert ask(other, asked).status_code == 201
    simulator.settle(refid, "01")
    assert service.read(refid, wait=10)["status"] == "succeeded"
    conflict(ask(service.http, asked), "order_paid", refid)


def test_a_failed_order_is_free_again(service: Service, simulator: Simulator) -> None:
    """After a failure the order may be paid by a new payment, which then is in the way, and asks for no review."""
    asked = payment(FAILS_AT_ONCE, orderid=f"o-{new_refid()}")
    assert ask(service.http, asked).json()["status"] == "failed"
    second = ask(service.http, asked | {"msisdn": NEVER_ACTS})
    assert second.status_code == 201
    conflict(ask(service.http, asked), "order_open", second.json()["refid"])
    simulator.settle(second.json()["refid"], "01")
    paid = service.read(second.json()["refid"], wait=10)
    assert (paid["status"], paid["review_reasons"]) == ("succeeded", [])


def test_a_late_success_takes_the_order(service: Service, simulator: Simulator) -> None:
    """A first payment that is paid after all, while a second is open, stops a third; both paid asks for a review."""
    asked = payment("250780000042", orderid=f"o-{new_refid()}")  # refused with a tid, paid some time later
    first = ask(service.http, asked).json()
    assert first["status"] == "failed"
    second = ask(service.http, asked | {"msisdn": NEVER_ACTS}).json()["refid"]
    assert eventually(lambda: service.read(first["refid"])["status"] == "succeeded")
    conflict(ask(service.http, asked), "order_paid", first["refid"])
    simulator.settle(second, "01")
    paid_twice = service.read(second, wait=10)
    assert (paid_twice["status"], paid_twice["review_reasons"]) == ("succeeded", ["order_paid_twice"])


def test_the_same_request_for_an_order_is_repeated_and_not_refused(service: Service) -> None:
    """A repetition by refid or key is 200 although its order is open: it is the same payment."""
    asked = payment(NEVER_ACTS, orderid=f"o-{new_refid()}", refid=new_refid())
    key = new_refid()
    assert [ask(service.http, asked, key).status_code for _ in range(2)] == [201, 200]
    answer = ask(service.http, {name: value for name, value in asked.items() if name != "refid"}, key)
    assert (answer.status_code, answer.json()["refid"]) == (200, asked["refid"])


@pytest.mark.parametrize("names", ["refid", "key", "both"])
def test_the_same_request_16_times_at_once(names: str, service: Service, simulator: Simulator) -> None:
    """Of 16 at the same moment one is 201, the others are 200 with the same payment; K-Pay is asked once."""
    asked = payment(NEVER_ACTS, refid=new_refid() if names != "key" else None)
    said = parallel(service, [asked] * 16, **({"idempotency_key": new_refid()} if names != "refid" else {}))
    assert Counter(each.status for each in said) == {201: 1, 200: 15}
    (refid,) = {each.json()["refid"] for each in said}
    assert simulator.requests(refid) == 1
    created = [event for event in service.events(refid) if event["type"] == "payment.created"]
    assert len(created) == 1


def test_16_contents_under_one_refid_at_once(service: Service, simulator: Simulator) -> None:
    """Of 16 different requests under one refid one is 201, the others are 409; K-Pay is asked for that one."""
    refid = new_refid()
    said = parallel(service, [payment(NEVER_ACTS, refid=refid, amount=amount) for amount in range(1, 17)])
    assert Counter(each.status for each in said) == {201: 1, 409: 15}
    (won,) = (each.json() for each in said if each.status == 201)
    ledger = simulator.ledger(refid)
    assert ledger is not None
    assert (ledger["requests"], ledger["amount"]) == (1, won["amount"])


def test_16_refids_under_one_key_at_once(service: Service, simulator: Simulator) -> None:
    """Of 16 refids under one key one is 201; the others are 409, name it, and leave nothing behind."""
    refids = [new_refid() for _ in range(16)]
    said = parallel(service, [payment(NEVER_ACTS, refid=refid) for refid in refids], idempotency_key=new_refid())
    assert Counter(each.status for each in said) == {201: 1, 409: 15}
    assert len({each.json()["refid"] for each in said}) == 1
    assert len(query(service.database_url, "SELECT refid FROM payments WHERE refid = ANY($1)", refids)) == 1
    assert sum(simulator.http.get(f"/_simulator/payments/{refid}").json()["requests"] for refid in refids) == 1


@pytest.mark.parametrize("before", ["new", "failed"])
def test_16_taps_on_one_order_at_once(before: str, service: Service, simulator: Simulator) -> None:
    """A payer who taps 16 times at once gets one prompt, also after a first payment has failed."""
    orderid = f"o-{new_refid()}"
    if before == "failed":
        service.start(FAILS_AT_ONCE, orderid=orderid)
    said = parallel(service, [payment(NEVER_ACTS, orderid=orderid)] * 16)
    assert Counter(each.status for each in said) == {201: 1, 409: 15}
    assert {each.json()["code"] for each in said if each.status == 409} == {"order_open"}
    (refid,) = {each.json()["refid"] for each in said}
    assert simulator.requests(refid) == 1
    mine = "SELECT refid FROM payments WHERE orderid = $1 AND status <> 'failed'"
    assert len(eventually(lambda: query(service.database_url, mine, orderid))) == 1
