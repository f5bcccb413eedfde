"""The simulator's own endpoints: the ledger, the payer's hand, the gateway's mood; and that it stops when told."""

import threading
import time

import httpx2
import pytest

from app.simulator import Config
from app.simulator.behaviours import BEHAVIOURS

from .support import DELAY, Kpay, Listener, running, until


def test_ledger_lists_all(own_kpay: Kpay) -> None:
    """The ledger has every payment, oldest first, and tells which requests it never took in."""
    first, second, gone = own_kpay.order("005"), own_kpay.order("005"), own_kpay.order("035")
    for order in (first, second, gone):
        own_kpay.send(order)
    listed = own_kpay.http.get("/_simulator/payments").json()
    assert [item["refid"] for item in listed["items"]] == [first["refid"], second["refid"]]
    assert listed["not_recorded"] == {gone["refid"]: 1}
    assert listed["items"][0] == own_kpay.truth(first["refid"])


def test_tids_differ(own_kpay: Kpay) -> None:
    """No two payments share a tid or a momtransactionid."""
    for _ in range(20):
        own_kpay.send(own_kpay.order("007"))
    items = own_kpay.http.get("/_simulator/payments").json()["items"]
    assert len({item["tid"] for item in items}) == len({item["momtransactionid"] for item in items}) == 20


def test_unknown_payment_is_404(kpay: Kpay) -> None:
    """Looking for or settling a payment that is not there is 404."""
    assert kpay.http.get("/_simulator/payments/never").status_code == 404
    assert kpay.settle("never", statusid="01").status_code == 404


@pytest.mark.parametrize(
    ("statusid", "words"),
    [("01", "Success"), ("02", "declined"), ("03", "Pending"), ("682", "internal"), ("999", "Unknown")],
)
def test_settle_by_hand(kpay: Kpay, statusid: str, words: str) -> None:
    """The payer is played by hand: checkstatus says so, and nobody was told."""
    order = kpay.order("005")
    kpay.send(order)
    settled = kpay.settle(order["refid"], statusid=statusid).json()
    assert settled["statusid"] == statusid
    assert words in settled["statusdesc"]
    assert bool(settled["momtransactionid"]) == (statusid == "01")
    assert kpay.checkstatus(refid=order["refid"])["statusid"] == statusid
    assert kpay.listener.received[order["refid"]] == []


def test_settle_with_words_and_postback(kpay: Kpay) -> None:
    """With `postback` the listener has been told when the answer comes; words may be given."""
    order = kpay.order("005")
    kpay.send(order)
    settled = kpay.settle(order["refid"], statusid="02", statusdesc="No money", postback=True).json()
    assert [sent["status"] for sent in settled["postbacks"]] == [200]
    assert b"No money" in kpay.listener.received[order["refid"]][0].body


def test_settle_ends_what_was_in_store(kpay: Kpay) -> None:
    """What the payer was played to do is not undone by the magic number."""
    order = kpay.order("025")
    kpay.send(order)
    kpay.settle(order["refid"], statusid="02")
    assert kpay.checkstatus(refid=order["refid"])["statusid"] == "02"
    time.sleep(4 * DELAY)
    assert kpay.truth(order["refid"])["statusid"] == "02"
    assert kpay.listener.received[order["refid"]] == []


@pytest.mark.parametrize("how", [{}, {"statusid": 1}, {"statusid": ""}, {"statusid": None}])
def test_settle_needs_a_statusid(kpay: Kpay, how: dict[str, object]) -> None:
    """Settling without a statusid is 400."""
    order = kpay.order("005")
    kpay.send(order)
    assert kpay.settle(order["refid"], **how).status_code == 400


def test_down(own_kpay: Kpay) -> None:
    """A gateway that is down answers HTML on 503, takes nothing in, and comes back."""
    order = own_kpay.order("005")
    assert own_kpay.behave(down=True).json()["down"] is True
    answer = own_kpay.send(order)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html; charset=utf-8")
    own_kpay.behave(down=False)
    assert own_kpay.checkstatus(refid=order["refid"])["statusid"] == "611"
    assert own_kpay.send(order).json()["retcode"] == 0


def test_refuse_credentials(own_kpay: Kpay) -> None:
    """Right credentials can be made wrong."""
    own_kpay.behave(refuse_credentials=True)
    assert own_kpay.send(own_kpay.order()).json()["retcode"] == 600
    assert own_kpay.checkstatus(refid="R")["retcode"] == 600


def test_latency_and_payer_delay(own_kpay: Kpay) -> None:
    """Answers can be made slow, and payers quick."""
    own_kpay.behave(latency=0.2, payer_delay=0)
    order = own_kpay.order()
    began = time.monotonic()
    own_kpay.send(order)
    assert time.monotonic() - began >= 0.19
    assert own_kpay.postbacks(order["refid"])


@pytest.mark.parametrize(
    "how", [{"up": True}, {"down": 1}, {"latency": "1"}, {"latency": -1}, {"payer_delay": True}, {"payer_delay": 1e9}]
)
def test_behave_refuses_what_it_does_not_know(kpay: Kpay, how: dict[str, object]) -> None:
    """An unknown member, or one of another type, is 400 and changes nothing."""
    assert kpay.behave(**how).status_code == 400
    assert kpay.behave().json() == {"down": False, "refuse_credentials": False, "latency": 0.0, "payer_delay": DELAY}


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
def test_behave_refuses_what_is_no_object(kpay: Kpay, body: bytes) -> None:
    """A body that is no JSON object is 400."""
    assert kpay.http.post("/_simulator/behave", content=body).status_code == 400


def test_magic_table_and_page(kpay: Kpay) -> None:
    """The table is there as JSON, and on a page that shows the ledger and the test cards, too."""
    items = kpay.http.get("/_simulator/magic").json()["items"]
    assert [item["msisdn"][-3:] for item in items] == list(BEHAVIOURS)
    open_, paid = kpay.order("005"), kpay.order("007")
    tid, paid_tid = (kpay.send(order).json()["tid"] for order in (open_, paid))
    page = kpay.http.get("/").text
    assert open_["refid"] in page
    assert items[-1]["does"] in page
    assert "5101 1800 0000 0007" in page
    assert f'href="/checkout/{tid}"' in page
    assert f'href="/checkout/{paid_tid}"' not in page
    assert paid_tid in page


def test_stops_while_answers_are_held(listener: Listener) -> None:
    """A stop waits for no held or dribbled answer, no payer and no postback that nobody takes."""
    with running(Config(payer_delay=0.2), listener) as kpay:

        def pay(number: str) -> None:
            httpx2.post(kpay.url, json=kpay.order(number), auth=("kpay", "kpay"), timeout=20)

        callers = [threading.Thread(target=pay, args=(number,)) for number in ("030", "031", "037")]
        for caller in callers:
            caller.start()
        kpay.send(kpay.order("006"))
        kpay.send(kpay.order(returl="http://127.0.0.1:1/"))
        until(lambda: len(kpay.http.get("/_simulator/payments").json()["items"]) == 4)
        began = time.monotonic()
    for caller in callers:
        caller.join()
    assert time.monotonic() - began < 10  # they are held for 60


def test_lets_go_when_the_caller_leaves(caplog: pytest.LogCaptureFixture, listener: Listener) -> None:
    """A caller who leaves a held, a dribbled or a closed answer leaves no error in the log."""
    with running(Config(payer_delay=DELAY), listener) as kpay:
        for number in ("030", "031", "032", "033"):
            with pytest.raises(httpx2.TransportError):
                kpay.send(kpay.order(number), timeout=0.1)
        with kpay.http.stream("POST", "/", json=kpay.order("037")) as answer:
            next(answer.iter_raw())
    assert caplog.records == []
