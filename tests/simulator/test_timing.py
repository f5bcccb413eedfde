"""Behaviours whose order in time is what matters, resent postbacks, and how magic numbers are read."""

import json
import re
import subprocess
import sys
import time

import pytest

from app.simulator.behaviours import BEHAVIOURS, chosen_by, markdown

from .support import DELAY, Kpay, until


def test_postback_before_the_answer(kpay: Kpay) -> None:
    """020 has told the listener before it answers the caller."""
    order = kpay.order("020")
    answer = kpay.send(order)
    assert len(kpay.listener.received[order["refid"]]) == 1
    assert answer.json()["reply"] == "PENDING"


def test_slow_lost_and_late(slow_kpay: Kpay) -> None:
    """006 is pending for long; 010 and 011 are paid while nobody has been told."""
    slow, lost, late = (slow_kpay.order(number) for number in ("006", "010", "011"))
    for order in (slow, lost, late):
        slow_kpay.send(order)
    until(lambda: slow_kpay.truth(lost["refid"])["statusid"] == "01")
    assert slow_kpay.truth(late["refid"])["statusid"] == "01"
    assert slow_kpay.listener.received[late["refid"]] == []
    assert slow_kpay.checkstatus(refid=slow["refid"])["statusid"] == "03"


def test_late_success(slow_kpay: Kpay) -> None:
    """021 is failed to everybody, and later paid."""
    order = slow_kpay.order("021")
    refid = order["refid"]
    slow_kpay.send(order)
    first = json.loads(slow_kpay.postbacks(refid, 1)[0].body)
    assert (first["statusid"], slow_kpay.checkstatus(refid=refid)["statusid"]) == ("02", "02")
    slow_kpay.postbacks(refid, 2)
    assert slow_kpay.checkstatus(refid=refid)["statusid"] == "01"


@pytest.mark.parametrize(("number", "meanwhile"), [("024", "03"), ("025", "611")])
def test_checkstatus_lags(slow_kpay: Kpay, number: str, meanwhile: str) -> None:
    """024 and 025 give checkstatus another answer than the truth for a while."""
    order = slow_kpay.order(number)
    slow_kpay.send(order)
    said = {slow_kpay.checkstatus(refid=order["refid"])["statusid"]}

    def paid() -> bool:
        said.add(slow_kpay.checkstatus(refid=order["refid"])["statusid"])
        return "01" in said

    until(paid)
    assert said == {meanwhile, "01"}
    assert len(slow_kpay.postbacks(order["refid"])) == 1


def test_024_has_told_the_listener_meanwhile(slow_kpay: Kpay) -> None:
    """024's postback says 01 while checkstatus says 03."""
    order = slow_kpay.order("024")
    slow_kpay.send(order)
    slow_kpay.postbacks(order["refid"])
    assert slow_kpay.truth(order["refid"])["statusid"] == "01"
    assert slow_kpay.checkstatus(refid=order["refid"])["statusid"] == "03"


def test_question_refused_twice(kpay: Kpay) -> None:
    """054 refuses two questions with 602, and answers the third."""
    order = kpay.order("054")
    kpay.send(order)
    kpay.postbacks(order["refid"])
    assert [kpay.checkstatus(refid=order["refid"])["statusid"] for _ in range(4)] == ["602", "602", "01", "01"]


def test_postback_is_sent_again_after_503(kpay: Kpay) -> None:
    """A postback that met 503 comes again, with the same body, until it is taken; each attempt is in the ledger."""
    order = kpay.order()
    kpay.listener.answers[order["refid"]] = [503, 500, 400]
    kpay.send(order)
    assert len({postback.body for postback in kpay.postbacks(order["refid"], 3)}) == 1
    time.sleep(5 * DELAY)
    sent = kpay.truth(order["refid"])["postbacks"]
    assert [attempt["status"] for attempt in sent] == [503, 500, 400]
    assert sent[-1]["answer"] == '{"reply":"OK"}'


@pytest.mark.parametrize("returl", ["http://127.0.0.1:1/", "no url", "http://["])
def test_nobody_listens(kpay: Kpay, returl: str) -> None:
    """A returl where nobody listens, or that is none, is tried five times, and the ledger says what went wrong."""
    order = kpay.order(returl=returl)
    kpay.send(order)
    until(lambda: sum(bool(sent["error"]) for sent in kpay.truth(order["refid"])["postbacks"]) == 5)
    assert kpay.truth(order["refid"])["statusid"] == "01"


@pytest.mark.parametrize(
    ("msisdn", "number"),
    [
        ("250780000013", "013"),
        ("0780000013", "013"),
        ("250730000013", "013"),
        ("250788312934", "000"),
        ("250780000999", "000"),
        ("250780001013", "000"),
        ("2507800000133", "000"),
    ],
)
def test_magic(msisdn: str, number: str) -> None:
    """Only a msisdn whose last seven digits are 0000NNN, with an NNN of the table, is magic."""
    assert chosen_by(msisdn).number == number


def test_module_prints_its_table() -> None:
    """`python -m app.simulator.behaviours` prints the Markdown, one row for each behaviour, and no warning."""
    command = [sys.executable, "-W", "error", "-m", "app.simulator.behaviours"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert printed.stdout == markdown()
    assert printed.stderr == ""
    assert re.findall(r"0000(\d{3}) \|", printed.stdout) == list(BEHAVIOURS)
