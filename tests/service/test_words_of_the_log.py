"""What the service has said by the end of all tests before: no secrets, no payer's number, one object a line."""

import json
import re

import pytest

from app.macs import RETURL, Macs
from tests.support import SECRET_KEY, Service, new_refid, payment, query

NUMBER = "250788312934"
EMAIL = "ikaneza@example.rw"


@pytest.fixture(scope="module")
def words(service: Service) -> str:
    """Return the log after everything that might put a secret there has been tried."""
    begun = service.start(NUMBER, refid=new_refid())
    refid, path = begun["refid"], service.returl(begun["refid"])
    said = {"tid": begun["tid"], "refid": refid, "statusid": NUMBER, "x": NUMBER, NUMBER: "x", "payaccount": NUMBER}
    for target in (path, f"{path}?key={service.key}", service.returl(refid, mac="x" * 27), f"{path}/"):
        for body in (json.dumps(said), json.dumps(said | {"refid": path}), f"{path} {NUMBER} {service.key}"):
            service.http.post(target, content=body, headers={"Content-Type": f"a/{NUMBER}"})
            service.http.get(target)
    for cursor in ("OTk5OS0xMi0zMVQyMzo1OTo1OS0yMzowMCBh", service.key, NUMBER):
        service.http.get("/v1/payments", params={"cursor": cursor, "msisdn": NUMBER})
    service.http.get(f"/v1/payments/{service.key}", headers={"X-Request-ID": service.key})
    service.http.post("/v1/payments", json=payment(NUMBER, details=service.key, cvv="123", amount=0))
    with service.client(f"{service.key}x") as http:
        http.get(f"/v1/payments?key={service.key}")
    service.read(refid, wait=10)
    service.postback(refid, statusid="02", statusdesc=f"{NUMBER} {path}")
    return service.process.words


def test_fault_59_every_line_is_one_object(words: str) -> None:
    """Whatever was sent in all tests before, each line of the log is one JSON object with time, level and event."""
    for line in words.splitlines():
        assert {"timestamp", "level", "event"} <= set(json.loads(line)), line


def test_fault_54_no_key_is_in_the_log(words: str, service: Service) -> None:
    """After all tests before no client's key is in the log, nor the start of one, nor the key that makes macs."""
    assert service.key not in words
    assert "kpk_" not in words
    assert SECRET_KEY not in words


def test_fault_54_no_mac_is_in_the_log(words: str, service: Service) -> None:
    """After all tests before no payment's mac is in the log, whatever path it stood in."""
    macs = Macs([SECRET_KEY])
    rows = query(service.database_url, "SELECT refid FROM payments UNION SELECT refid FROM bodies")
    assert rows
    assert not [row["refid"] for row in rows if macs.make(RETURL, row["refid"]) in words]


def test_fault_53_no_payer_is_in_the_log(words: str, service: Service) -> None:
    """After all tests before no payer's whole number, however written, and no e-mail address is in the log."""
    numbers = {row["msisdn"] for row in query(service.database_url, "SELECT DISTINCT msisdn FROM payments")}
    assert NUMBER in numbers
    assert not [number for number in numbers if number in words or f"0{number.removeprefix('250')}" in words]
    assert EMAIL not in words


def test_nothing_went_wrong(words: str) -> None:
    """No answer of all tests was a mistake of the service, and no exception was lost in it."""
    events = [json.loads(line)["event"] for line in words.splitlines()]
    bad = ("a mistake of this service", "Exception in ASGI application", "Task exception was never retrieved")
    assert not [event for event in events if event.startswith(bad)]


@pytest.mark.parametrize("name", ["7f0cd0a1-6a3e-4c6c-9d5c-0a4f3f1f2b3C", "4bf9" * 8])
def test_a_request_keeps_the_name_that_it_came_with(service: Service, name: str) -> None:
    """A UUID, with dashes or without, is in the answer and in each line of the log about this request."""
    answer = service.http.post(service.returl("r1", mac="x" * 27), headers={"X-Request-ID": name})
    assert answer.headers.get_list("X-Request-ID") == [name]
    lines = [json.loads(line) for line in service.process.words.splitlines() if name in line]
    assert [line["event"] for line in lines] == ["postback with a wrong mac"]
    assert lines[0]["request"] == name


@pytest.mark.parametrize(
    "name",
    ["", "order-1042", "7f0cd0a1-6a3e-4c6c-9d5c0a4f3f1f2b3c", "4bf9" * 7 + "473g", "kpk_" + "a" * 28],
)
def test_what_is_no_name_is_not_taken_for_one(service: Service, name: str) -> None:
    """Anything else may be a secret or forge a line: the request gets a new name, each another one."""
    answers = [service.http.get("/healthz", headers={"X-Request-ID": name}) for _ in range(2)]
    names = {answer.headers["X-Request-ID"] for answer in answers}
    assert len(names) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in names)
