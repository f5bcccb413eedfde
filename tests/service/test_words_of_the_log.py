"""What the service has said by the end of all tests before: no secrets, no payer's number, one object a line."""

import json

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
