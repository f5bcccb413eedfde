"""Reading one payment: waiting for its end, its timeline, asking K-Pay now, and names that nobody has."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx2
import pytest

from tests.support import Json, Service, Simulator, at_once, eventually, hush, new_refid, spoken

NEVER_ACTS = "250780000005"
PAYS_SLOWLY = "250780000006"
SOURCES = {"caller", "gateway_reply", "postback", "checkstatus", "clock", "operator"}


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


def test_a_read_is_what_the_start_answered(service: Service) -> None:
    """A payment that has not moved reads as its start answered it, but for what a check notes."""
    begun = service.start(NEVER_ACTS, metadata={"a": "b"}, orderid=new_refid(), logourl="https://x.rw/l.png")
    told = {"checked_at", "updated_at", "statusid", "statusdesc"}  # K-Pay may have been asked in between
    read = service.read(begun["refid"])
    assert {name: read[name] for name in read.keys() - told} == {name: begun[name] for name in begun.keys() - told}


def test_a_read_by_hand_is_the_documented_one(service: Service) -> None:
    """Without a query a read is answered by hand, with one by FastAPI: byte for byte the same, refusals too."""
    refid = service.start(NEVER_ACTS, metadata={"a": "\u00e9"}, orderid=new_refid())["refid"]
    hush(service)  # nothing changes between the two
    kept = ("content-type", "content-length")

    def told(http: httpx2.Client, name: str, query: str) -> tuple[int, dict[str, str], Json]:
        answer = http.get(f"/v1/payments/{name}{query}")
        ours = {header: answer.headers[header] for header in kept}
        return answer.status_code, ours, {"body": answer.text} if answer.is_success else answer.json()

    with (
        service.client(service.new_key("stranger", "payments:read")) as stranger,
        service.client(service.new_key("starter", "payments:write")) as starter,
    ):
        for http, name, status in (
            (service.http, refid, 200),
            (service.http, new_refid(), 404),
            (service.http, "no%20refid", 404),
            (stranger, refid, 404),
            (starter, refid, 403),
        ):
            by_hand, documented = (told(http, name, query) for query in ("", "?wait=0"))
            assert by_hand == documented
            assert by_hand[0] == status


def test_a_read_with_a_body_is_bounded_as_every_call(service: Service) -> None:
    """A body that nobody needs is read: the connection goes on after a small one, and a large one is 413."""
    path = f"/v1/payments/{service.start(NEVER_ACTS)['refid']}"
    small, large = (service.http.request("GET", path, content=b"x" * size) for size in (2, 65_537))
    assert (small.status_code, large.status_code) == (200, 413)
    assert "connection" not in small.headers


def test_a_wait_ends_with_the_payment(service: Service) -> None:
    """A wait answers when the payment is final, long before the time is up."""
    refid = service.start(PAYS_SLOWLY)["refid"]
    began = time.monotonic()
    assert service.read(refid, wait=60)["status"] == "succeeded"
    assert time.monotonic() - began < 30
    began = time.monotonic()
    assert service.read(refid, wait=60)["status"] == "succeeded"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("wait", [0, 0.5, 1.5])
def test_a_wait_ends_with_the_time(wait: float, service: Service) -> None:
    """A wait for a payment that stays open answers with it as it is when the time is up."""
    refid = service.start(NEVER_ACTS)["refid"]
    began = time.monotonic()
    assert service.read(refid, wait=wait)["status"] == "pending"
    assert wait - 0.05 <= time.monotonic() - began < wait + 3


def test_many_wait_at_once(service: Service, simulator: Simulator) -> None:
    """60 who wait for one payment all hear of its end at once, and meanwhile the service serves others."""
    refid = service.start(NEVER_ACTS)["refid"]
    request = spoken("GET", f"/v1/payments/{refid}?wait=20", authorization=f"Bearer {service.key}")
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        waiting = pool.submit(at_once, service.url, [request] * 60, seconds=30)
        assert service.http.get("/v1/payments").status_code == 200
        assert service.start(NEVER_ACTS)["status"] == "pending"
        simulator.settle(refid, "01")
        assert {each.json()["status"] for each in waiting.result()} == {"succeeded"}
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("wait", ["-1", "60.001", "61", "1e9", "nan", "inf", "-inf", "abc", "", "0x1", "1,5", "%00"])
def test_a_wait_that_is_none(wait: str, service: Service) -> None:
    """A wait that is no number from 0 to 60 is 422 and named."""
    answer = service.http.get(f"/v1/payments/{new_refid()}?wait={wait}")
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["wait"]


def test_a_wait_for_nothing_is_404_at_once(service: Service) -> None:
    """Nobody waits for a payment that does not exist."""
    began = time.monotonic()
    assert service.http.get(f"/v1/payments/{new_refid()}?wait=30").status_code == 404
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("rest", ["", "/events", "/check"])
@pytest.mark.parametrize(
    "refid",
    ["%00", "a%00b", "%ff", "%ED%A0%80", "%F0%9F%8E%89", "%zz", "%", "%0d%0aX:1", "%20", "..", "%2e%2e", "'--", "%1b"],
)
def test_a_refid_that_is_none_is_not_found(refid: str, rest: str, service: Service) -> None:
    """Junk in place of a refid is 404 like any refid that nobody has."""
    request = spoken(
        "POST" if rest == "/check" else "GET",
        f"/v1/payments/{refid}{rest}",
        authorization=f"Bearer {service.key}",
    )
    (said,) = at_once(service.url, [request])
    assert (said.status, said.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("length", [41, 200, 201, 10_000, 60_000])
def test_a_long_refid_is_not_found(length: int, service: Service) -> None:
    """A refid longer than any can be is an answer, 404 or 422, and no error of the service."""
    for path in (f"/v1/payments/{'a' * length}", f"/v1/payments/{'a' * length}/events"):
        assert service.http.get(path).status_code in {404, 422}


def test_a_timeline_tells_all_in_order(service: Service) -> None:
    """A paid payment's timeline: numbered from 1, oldest first, every change and every piece of evidence."""
    refid = service.start("250780000012")["refid"]
    service.read(refid, wait=15)
    events = eventually(lambda: "postback" in str(seen := service.events(refid)) and seen)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    times = [datetime.fromisoformat(event["created_at"]) for event in events]
    assert times == sorted(times)
    assert all(event["created_at"].endswith("Z") for event in events)
    assert [event["type"] for event in events if event["type"] != "evidence"] == [
        *("payment.created", "payment.pending", "payment.succeeded")
    ]
    assert {event["source"] for event in events} <= SOURCES
    assert (events[0]["source"], events[0]["status"]) == ("caller", "created")
    paid = next(event for event in events if event["type"] == "payment.succeeded")
    assert (paid["source"], paid["status"], paid["statusid"]) == ("checkstatus", "succeeded", "01")
    assert paid["momtransactionid"] == service.read(refid)["momtransactionid"]


def test_a_check_asks_kpay_now(service: Service, simulator: Simulator) -> None:
    """A check answers with what K-Pay says at this moment, and says that it has asked."""
    begun = service.start(NEVER_ACTS)
    first = service.http.post(f"/v1/payments/{begun['refid']}/check").json()
    assert (first["status"], first["checked_at"] is None) == ("pending", False)
    simulator.settle(begun["refid"], "01", postback=False)
    second = service.http.post(f"/v1/payments/{begun['refid']}/check").json()
    assert second["status"] == "succeeded"
    assert second["checked_at"] > first["checked_at"]


def test_a_check_of_a_final_payment_changes_nothing(service: Service) -> None:
    """A check of a paid or a failed payment asks again and leaves it as it was."""
    for number in ("250780000007", "250780000001"):
        refid = service.start(number)["refid"]
        before = service.read(refid, wait=15)
        after = service.http.post(f"/v1/payments/{refid}/check").json()
        kept = ("status", "tid", "momtransactionid", "failure", "final_at", "review_reasons")
        assert [after[name] for name in kept] == [before[name] for name in kept]


def test_16_checks_at_once_are_one_effect(service: Service, simulator: Simulator) -> None:
    """Of 16 checks at the same moment each answers with the truth, and the timeline has one success."""
    refid = service.start(NEVER_ACTS)["refid"]
    simulator.settle(refid, "01", postback=False)
    request = spoken("POST", f"/v1/payments/{refid}/check", b"{}", authorization=f"Bearer {service.key}")
    assert {each.json()["status"] for each in at_once(service.url, [request] * 16)} == {"succeeded"}
    assert [event["type"] for event in service.events(refid)].count("payment.succeeded") == 1
