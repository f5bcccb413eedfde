"""Postbacks that lie, storm, come too early or not at all: faults 1, 4, 5, 11 and 12.

The listener's other faults are shown row by row in `tests/service/test_listener*.py` and `test_hostile_*.py`.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.support import Json, Service, Simulator, bodies, eventually, hush, metric, new_refid

NEVER_ACTS = "250780000005"
LONGEST = 5.0
"""Seconds that an answer to somebody else may take in a storm."""


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


def forged(payment: Json, **changes: object) -> bytes:
    """Return a postback that says `payment` was paid."""
    said = {"tid": payment["tid"], "refid": payment["refid"], "momtransactionid": "1", "statusid": "01"}
    return json.dumps(said | changes).encode()


@pytest.mark.parametrize(
    ("number", "end"),
    [(NEVER_ACTS, "pending"), ("250780000033", "failed"), ("250780000001", "failed")],
    ids=["kpay_says_03", "kpay_says_611", "kpay_says_02"],
)
def test_fault_01_forged_paid_is_never_believed(number: str, end: str, service: Service, simulator: Simulator) -> None:
    """A forged postback that says paid is never believed, even with a true mac: K-Pay's own answer decides."""
    begun = service.start(number)
    refid = begun["refid"]

    def forge(momtransactionid: str) -> None:
        before = service.read(refid)["checked_at"]
        body = forged(service.read(refid), momtransactionid=momtransactionid)
        assert service.http.post(service.returl(refid), content=body).json()["reply"] == "OK"
        assert service.http.post(service.returl(refid, mac="x" * 27), content=body).status_code == 404
        assert service.read(refid)["status"] != "succeeded"
        eventually(lambda: service.read(refid)["checked_at"] != before)

    forge(f"m1{refid}")
    eventually(lambda: service.read(refid)["status"] == end)
    forge(f"m2{refid}")
    now = service.http.post(f"/v1/payments/{refid}/check").json()
    assert (now["status"], now["momtransactionid"]) == (end, None)
    assert "payment.succeeded" not in [event["type"] for event in service.events(refid)]
    assert len(bodies(service, refid)) >= 2
    assert (simulator.ledger(refid) or {}).get("statusid") != "01"


def test_fault_05_a_postback_about_another_payment(service: Service) -> None:
    """A postback by one payment's true path that speaks of another is 400, kept with the first, and touches neither."""
    ours, other = service.start(NEVER_ACTS), service.start(NEVER_ACTS)
    before = service.http.post(f"/v1/payments/{ours['refid']}/check").json()["checked_at"]
    body = forged(other)
    answer = service.http.post(service.returl(ours["refid"]), content=body)
    assert (answer.status_code, answer.json()["reply"]) == (400, "ERROR")
    assert (bodies(service, ours["refid"]), bodies(service, other["refid"])) == ([body], [])
    assert "postback" not in [event["source"] for event in service.events(other["refid"])]
    eventually(lambda: service.read(ours["refid"])["checked_at"] != before)
    for each in (ours, other):
        now = service.read(each["refid"])
        assert (now["status"], now["tid"], now["momtransactionid"]) == ("pending", each["tid"], None)


def test_fault_11_postback_before_the_reply(service: Service, simulator: Simulator) -> None:
    """A postback that comes before K-Pay's reply to the request finds its payment, and the reply undoes nothing."""
    begun = service.start("250780000020")  # K-Pay answers `pay` only after its postback was answered
    refid = begun["refid"]
    assert len(bodies(service, refid)) == 1
    assert [told["status"] for told in (simulator.ledger(refid) or {})["postbacks"]] == [200]
    assert service.read(refid, wait=10)["status"] == "succeeded"
    events = service.events(refid)
    sources = [event["source"] for event in events]
    assert [event["type"] for event in events].count("payment.succeeded") == 1
    assert sources.index("postback") < (sources.index("gateway_reply") if "gateway_reply" in sources else len(sources))
    assert service.read(refid)["needs_review"] is False


def test_fault_12_postback_that_never_comes(service: Service, simulator: Simulator) -> None:
    """A postback that never comes is not missed: the checks find the outcome within their schedule."""
    refid = service.start("250780000010")["refid"]
    assert service.read(refid, wait=15)["status"] == "succeeded"
    assert (simulator.ledger(refid) or {})["postbacks"] == []
    assert bodies(service, refid) == []
    assert service.events(refid)[-1]["source"] == "checkstatus"


class Storm:
    """Sends one request again and again over many connections, from a thread of its own."""

    def __init__(self, service: Service, requests: list[bytes], *, connections: int) -> None:
        host, _, port = service.url.removeprefix("http://").partition(":")
        self._where = host, int(port)
        self._requests = iter(requests)
        self._connections = connections
        self.answers: Counter[tuple[int, str]] = Counter()
        self.seconds = 0.0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._blow()), daemon=True)

    @contextmanager
    def blowing(self) -> Iterator[None]:
        """Storm while the block runs, and until everything was answered."""
        self._thread.start()
        try:
            yield
        finally:
            self._thread.join(90)

    @property
    def is_blowing(self) -> bool:
        """Whether requests are still under way."""
        return self._thread.is_alive()

    async def _blow(self) -> None:
        began = time.monotonic()
        await asyncio.gather(*(self._connection() for _ in range(self._connections)))
        self.seconds = time.monotonic() - began

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(*self._where)
        for request in self._requests:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            self.answers[int(head.split(b" ", 2)[1]), str(body.get("reply") or body.get("code"))] += 1
        writer.close()


def said(path: str, body: bytes) -> bytes:
    """Return a postback byte for byte, on a connection that is kept."""
    return f"POST {path} HTTP/1.1\r\nHost: kpayd\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def checks(simulator: Simulator, refid: str) -> int:
    """Return how often K-Pay was asked about a payment."""
    return int((simulator.ledger(refid) or {})["checks"])


def served(service: Service, refid: str) -> str | None:
    """Return a payment's status, or None where the service is too busy to tell."""
    answer = service.http.get(f"/v1/payments/{refid}")
    return None if answer.status_code == 503 else str(answer.raise_for_status().json()["status"])


@pytest.mark.timeout(180)
def test_fault_04_a_storm_of_duplicates(service: Service, simulator: Simulator) -> None:
    """4,000 copies of one postback over 50 connections are one effect, and everybody else is served meanwhile."""
    begun, others = service.start(NEVER_ACTS), [service.start(NEVER_ACTS) for _ in range(10)]
    refid, body = begun["refid"], forged(begun)
    stored, asked = metric(service, "kpayd_postback_batch_sum"), checks(simulator, refid)
    storm = Storm(service, [said(service.returl(refid), body)] * 4_000, connections=50)
    took = []
    with storm.blowing():
        for other in others:
            began = time.monotonic()
            assert service.http.post(service.returl(other["refid"]), content=forged(other)).status_code == 200
            took.append(time.monotonic() - began)
            # A reader may be told that the service is behind, and to come again.
            assert eventually(partial(served, service, other["refid"]), seconds=LONGEST) == "pending"
            took.append(time.monotonic() - began)
        assert storm.is_blowing, "the storm was over before anybody else came"
    assert storm.answers == {(200, "OK"): 4_000}
    assert max(took) < LONGEST, took
    assert bodies(service, refid) == [body]
    assert [event["source"] for event in service.events(refid)].count("postback") == 1
    # Those that arrive together share one statement, and one check serves them all.
    assert metric(service, "kpayd_postback_batch_sum") - stored < 2_000
    assert checks(simulator, refid) - asked < 10 + 5 * storm.seconds


@pytest.mark.timeout(180)
def test_fault_04_a_storm_of_wrong_macs_and_of_nonsense(service: Service, simulator: Simulator) -> None:
    """Wrong macs by the thousand never reach the database, and nonsense by the hundred brings no storm upon K-Pay."""
    begun, other = service.start(NEVER_ACTS), service.start(NEVER_ACTS)
    refid, asked = begun["refid"], checks(simulator, begun["refid"])
    stored = metric(service, "kpayd_postback_batch_sum")
    wrong = Storm(service, [said(service.returl(refid, mac="x" * 27), forged(begun))] * 1_000, connections=20)
    with wrong.blowing():
        assert eventually(lambda: served(service, other["refid"]), seconds=LONGEST) == "pending"
    assert wrong.answers == {(404, "no_such_returl"): 1_000}
    assert metric(service, "kpayd_postback_batch_sum") == stored
    nonsense = [said(service.returl(refid), f"nonsense {number} {new_refid()}".encode()) for number in range(300)]
    storm = Storm(service, nonsense, connections=20)
    with storm.blowing():
        assert service.http.post(service.returl(other["refid"]), content=forged(other)).status_code == 200
    assert storm.answers == {(400, "ERROR"): 300}
    assert len(bodies(service, refid)) == 300
    assert checks(simulator, refid) - asked < 10 + 5 * storm.seconds
    assert service.read(refid)["status"] == "pending"
