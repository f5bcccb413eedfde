"""The main job: every behaviour of the simulator is played through the real loop, and ends as K-Pay's ledger says."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from app.simulator.behaviours import BEHAVIOURS
from tests.support import Json, Service, Simulator, eventually, payment


@dataclass(frozen=True)
class End:
    """How a payment must end: status, failure code, why a person should look at it, and why one may have to.

    `may` holds what hangs on whether a check or a postback was first; other tests force the order and the review.
    """

    status: str
    code: str | None = None
    reviews: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()


PAID = End("succeeded")
OPEN = End("pending")
NEVER_RECEIVED = End("failed", "not_received")


def paid_but(*reviews: str) -> End:
    """Return the end of a payment that was paid and needs a person's eyes."""
    return End("succeeded", None, frozenset(reviews))


ENDS: Mapping[str, End] = {
    "000": PAID,
    "001": End("failed", "declined"),
    "002": End("failed", "insufficient_funds"),
    "003": End("failed", "gateway_error"),
    "004": End("failed", "cancelled"),
    "005": OPEN,
    "006": PAID,
    "007": PAID,
    "008": PAID,
    "010": PAID,
    "011": PAID,
    "012": PAID,
    "013": End("succeeded", may=frozenset({"contradiction"})),
    "014": End("succeeded", may=frozenset({"contradiction"})),
    "015": OPEN,
    "016": paid_but("tid_mismatch"),
    "017": PAID,
    "018": PAID,
    "019": PAID,
    "020": PAID,
    "021": End("succeeded", may=frozenset({"late_success"})),
    "022": paid_but("momtransactionid_missing"),
    "023": End("failed", "declined", frozenset({"momtransactionid_unexpected"})),
    "024": PAID,
    "025": PAID,
    "030": PAID,
    "031": NEVER_RECEIVED,
    "032": PAID,
    "033": NEVER_RECEIVED,
    "034": PAID,
    "035": NEVER_RECEIVED,
    "036": PAID,
    "037": PAID,
    "038": PAID,
    "039": PAID,
    "040": End("failed", "gateway_error"),
    "041": End("failed", "declined"),
    "042": paid_but("late_success"),
    "043": paid_but("duplicate_refid"),
    "044": PAID,
    "045": End("failed", "misconfigured"),
    "046": End("failed", "misconfigured"),
    "047": End("failed", "misconfigured"),
    "048": End("failed", "refused"),
    "049": End("failed", "refused"),
    "050": NEVER_RECEIVED,
    "051": End("failed", "misconfigured"),
    "052": PAID,
    "053": PAID,
    "054": PAID,
}


@pytest.fixture(scope="module")
def started(service: Service) -> dict[str, Json]:
    """Start a payment for every magic number, and return each as its start answered it."""
    return {number: service.start(f"250780000{number}") for number in ENDS}


def test_every_behaviour_of_the_simulator_is_played() -> None:
    """The table above leaves none out."""
    assert set(ENDS) == set(BEHAVIOURS)


@pytest.mark.parametrize("number", ENDS)
def test_a_payment_ends_as_kpay_says(
    number: str, started: dict[str, Json], service: Service, simulator: Simulator
) -> None:
    """Status, failure and reviews are those of the table; K-Pay was asked for the money once; events are in order."""
    refid, end = started[number]["refid"], ENDS[number]

    def ended() -> Json | None:
        now = service.read(refid)
        good = now["status"] == end.status and end.reviews <= set(now["review_reasons"])
        return now if good else None

    now = eventually(ended, seconds=25)
    assert (now["failure"] or {}).get("code") == end.code
    assert end.reviews <= set(now["review_reasons"]) <= end.reviews | end.may
    assert now["needs_review"] == bool(now["review_reasons"])
    assert (now["final_at"] is None) == (end.status == "pending")
    assert simulator.requests(refid) == 1
    events = service.events(refid)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events].count("payment.succeeded") == (end.status == "succeeded")


def test_the_ledger_agrees_in_the_end(started: dict[str, Json], service: Service, simulator: Simulator) -> None:
    """What kpayd says was paid is what K-Pay says was paid, for every payment of this module."""

    def paid() -> tuple[set[str], set[str]]:
        refids = {each["refid"] for each in started.values()}
        ours = {refid for refid in refids if service.read(refid)["status"] == "succeeded"}
        theirs = {refid for refid in refids if (simulator.ledger(refid) or {}).get("statusid") == "01"}
        return ours, theirs

    ours, theirs = eventually(lambda: (both := paid())[0] == both[1] and both, seconds=25)
    assert ours == theirs


def test_the_answer_has_what_the_caller_sent(service: Service) -> None:
    """A payment gives back the caller's fields, with what was left out filled in, and nothing of the service's own."""
    asked = payment("0788312934", orderid="o-1", metadata={"shop": "3"}, logourl="https://shop.example.rw/logo.png")
    body = service.http.post("/v1/payments", json=asked).json()
    assert body | asked | {"msisdn": "250788312934"} == body
    assert (body["cnumber"], body["bankid"], body["currency"]) == ("250788312934", "63510", "RWF")
    assert not {"token", "cvv", "returl", "retailerid", "action"} & set(body)


def test_kpay_is_given_a_returl_of_its_own_and_no_metadata(service: Service, simulator: Simulator) -> None:
    """A paid payment was told by a postback to its own returl, which the listener answered with OK."""
    refid = service.start(metadata={"secret": "ours"})["refid"]
    service.read(refid, wait=10)
    told = eventually(lambda: [each for each in simulator.ledger(refid)["postbacks"] if each["status"]])  # type: ignore[index]
    answer = told[0]["answer"]
    assert told[0]["status"] == 200
    assert '"reply":"OK"' in answer.replace(" ", "")
