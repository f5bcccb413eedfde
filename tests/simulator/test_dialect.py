"""What K-Pay accepts, refuses and answers: the guide's own shapes and codes."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from app.simulator.codes import BANKS, PMETHODS, REQUIRED

from .support import Kpay


def test_accepted_has_the_shape_of_the_guide(kpay: Kpay) -> None:
    """A request that is taken in is answered with the guide's members, and a tid like the guide's."""
    order = kpay.order("005")
    answer = kpay.send(order)
    assert answer.status_code == 200
    assert list(answer.json()) == ["reply", "url", "success", "authkey", "tid", "refid", "retcode"]
    assert answer.json() | {"authkey": "", "tid": ""} == {
        "reply": "PENDING",
        "url": f"{kpay.url}/checkout/{answer.json()['tid']}",
        "success": 1,
        "authkey": "",
        "tid": "",
        "refid": order["refid"],
        "retcode": 0,
    }
    assert answer.json()["tid"][0] == "A"
    assert answer.json()["tid"][1:].isdecimal()


def test_action_may_be_said(kpay: Kpay) -> None:
    """`action` `pay` means the same as none."""
    assert kpay.send(kpay.order("005", action="pay")).json()["retcode"] == 0


def test_any_path_is_the_gateway(kpay: Kpay) -> None:
    """K-Pay answers on whatever path it is called."""
    assert kpay.http.post("/some/where", json=kpay.order("005")).json()["retcode"] == 0


@pytest.mark.parametrize("pmethod", sorted(PMETHODS))
def test_every_payer_gets_a_page(kpay: Kpay, pmethod: str) -> None:
    """A payment by whatever method is answered with a checkout url at the simulator's own address."""
    answer = kpay.send(kpay.order("005", pmethod=pmethod)).json()
    assert answer["url"] == f"{kpay.url}/checkout/{answer['tid']}"


@pytest.mark.parametrize("name", [*REQUIRED, "amount"])
@pytest.mark.parametrize("value", [None, "", [], True])
def test_missing_parameter_is_603(kpay: Kpay, name: str, value: object) -> None:
    """Each Required parameter must be there, be of its type, and not be empty."""
    order = kpay.order("005", **{name: value})
    assert kpay.send(order).json()["retcode"] == 603
    assert kpay.checkstatus(refid=order.get("refid") or "never")["statusid"] in {"611", "603"}


@pytest.mark.parametrize(
    ("change", "retcode"),
    [
        ({"amount": 0}, 603),
        ({"amount": -1}, 603),
        ({"amount": "4200"}, 603),
        ({"amount": 4200.0}, 603),
        ({"currency": "EUR"}, 603),
        ({"currency": []}, 603),
        ({"action": "refund"}, 603),
        ({"action": ["pay"]}, 603),
        ({"retailerid": "03"}, 604),
        ({"pmethod": "cheque"}, 609),
        ({"bankid": "11"}, 610),
    ],
)
def test_refused_for_what_it_says(kpay: Kpay, change: dict[str, object], retcode: int) -> None:
    """A wrong value is refused with the guide's code, and leaves nothing in the ledger."""
    order = kpay.order("000", **change)
    answer = kpay.send(order).json()
    assert (answer["retcode"], answer["success"], answer["tid"]) == (retcode, 0, "")
    assert "statusid" not in kpay.truth(order["refid"])


@pytest.mark.parametrize("bankid", BANKS)
def test_every_bank_is_known(kpay: Kpay, bankid: str) -> None:
    """Each bankid of the guide is accepted."""
    assert kpay.send(kpay.order("005", bankid=bankid)).json()["retcode"] == 0


@pytest.mark.parametrize("pmethod", sorted(PMETHODS))
def test_every_method_is_known(kpay: Kpay, pmethod: str) -> None:
    """Each pmethod of the guide is accepted."""
    assert kpay.send(kpay.order("005", pmethod=pmethod)).json()["retcode"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"amount":' + b"9" * 5000 + b"}"])
def test_malformed_body_is_603(kpay: Kpay, body: bytes) -> None:
    """A body that is no JSON object is refused like an empty one."""
    answer = kpay.http.post("/", content=body)
    assert (answer.status_code, answer.json()["retcode"]) == (200, 603)


def test_refid_used_before_is_608(kpay: Kpay) -> None:
    """The second request for a refid is refused, counted, and changes nothing."""
    order = kpay.order("005")
    kpay.send(order)
    assert kpay.send(order | {"amount": 1}).json()["retcode"] == 608
    truth = kpay.truth(order["refid"])
    assert (truth["requests"], truth["amount"]) == (2, 4200)


def test_of_many_at_once_one_is_taken_in(kpay: Kpay) -> None:
    """Of many requests for one refid at the same time exactly one is accepted."""
    order = kpay.order("005")
    with ThreadPoolExecutor(8) as pool:
        retcodes = sorted(answer.json()["retcode"] for answer in pool.map(kpay.send, [order] * 16))
    assert retcodes == [0] + [608] * 15
    assert kpay.truth(order["refid"])["requests"] == 16


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !",
        "Bearer kpay",
        "Basic " + base64.b64encode(b"kpay:wrong").decode(),
        "Basic " + base64.b64encode(b"wrong:kpay").decode(),
    ],
)
def test_wrong_credentials_are_600(kpay: Kpay, authorization: str) -> None:
    """Whoever shows no or wrong credentials is refused with 600, whatever the request."""
    for message in (kpay.order(), {"action": "checkstatus", "refid": "R"}, {}):
        answer = httpx2.post(kpay.url, json=message, headers={"Authorization": authorization})
        assert answer.json()["retcode"] == 600


@pytest.mark.parametrize(("key", "retcode"), [("secret", 0), ("wrong", 600), ("", 600)])
def test_key_must_match_where_there_is_one(own_kpay: Kpay, key: str, retcode: int) -> None:
    """With a key in its settings the simulator asks for the `Kpay-Key` header."""
    answer = own_kpay.http.post("/", json=own_kpay.order("005"), headers={"Kpay-Key": key})
    assert answer.json()["retcode"] == retcode


def test_checkstatus_by_tid_refid_or_both(kpay: Kpay) -> None:
    """A payment is found by either reference or by both, and not by one right and one wrong."""
    order = kpay.order("005")
    refid, tid = order["refid"], kpay.send(order).json()["tid"]
    expected = {
        "tid": tid,
        "refid": refid,
        "momtransactionid": "",
        "statusid": "03",
        "statusdesc": "Pending transaction",
    }
    for about in ({"tid": tid}, {"refid": refid}, {"tid": tid, "refid": refid}):
        assert kpay.checkstatus(**about) == expected
    for about in ({"tid": "A1", "refid": refid}, {"tid": tid, "refid": "R"}):
        assert kpay.checkstatus(**about)["statusid"] == "611"
    assert kpay.truth(refid)["checks"] == 3


def test_checkstatus_of_an_unknown_payment_is_611(kpay: Kpay) -> None:
    """Not found is said in the guide's shape: tid and refid empty."""
    assert kpay.checkstatus(refid="never") == {
        "tid": "",
        "refid": "",
        "momtransactionid": "",
        "statusid": "611",
        "statusdesc": "Transaction not found",
    }


def test_checkstatus_of_nothing_is_603(kpay: Kpay) -> None:
    """A question without tid and refid is refused."""
    assert kpay.checkstatus(tid="", refid="")["statusid"] == "603"


def test_hostile_text_comes_back(kpay: Kpay) -> None:
    """NUL, a lone surrogate and markup in a refid harm neither the answers nor the page."""
    order = kpay.order("018", refid='\x00\ud800<b>"', returl="http://127.0.0.1:1/\ud800")
    body = json.dumps(order)
    assert kpay.http.post("/", content=body).json()["refid"] == order["refid"]
    assert kpay.http.get("/_simulator/payments").json()["items"]
    assert "&lt;b&gt;" in kpay.http.get("/").text
