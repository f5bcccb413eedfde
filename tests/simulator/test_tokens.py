"""Saved cards: the guide's shapes with their oddities, the page that saves, and charges by token."""

import json
import re
import time
import uuid

import httpx2
import pytest

from app.simulator.codes import REQUIRED_OF_ADDTOKEN, REQUIRED_OF_TOKENLIST, REQUIRED_OF_TOKENPAY

from .support import DELAY, Kpay

CLIENT = "250788312934"


def test_addtoken_has_the_shape_of_the_guide(kpay: Kpay) -> None:
    """An address to save a card at is answered with the guide's members, and a tid like the guide's."""
    answer = kpay.invite(CLIENT)
    assert list(answer) == ["reply", "url", "success", "authkey", "tid", "refid", "retcode"]
    assert answer["authkey"]
    assert re.fullmatch(r"TK3\d+", answer["tid"])
    assert answer | {"authkey": ""} == {
        "reply": "token generation url saved",
        "url": f"{kpay.url}/token/{answer['tid']}",
        "success": 1,
        "authkey": "",
        "tid": answer["tid"],
        "refid": "YR1600116349",
        "retcode": 0,
    }


@pytest.mark.parametrize("name", REQUIRED_OF_ADDTOKEN)
@pytest.mark.parametrize("value", [None, "", [], 1])
def test_addtoken_misses_a_parameter(kpay: Kpay, name: str, value: object) -> None:
    """Each parameter of addtoken must be there; `cname` in the place of `cusname` does not count."""
    answer = kpay.invite(CLIENT, cname="Kaneza Innocent", **{name: value})
    assert (answer["retcode"], answer["success"], answer["url"]) == (603, 0, "")


@pytest.mark.parametrize("name", REQUIRED_OF_TOKENLIST)
def test_tokenlist_misses_a_parameter(kpay: Kpay, name: str) -> None:
    """Each parameter of tokenlist must be there."""
    asked = {"action": "tokenlist", "msisdn": CLIENT, "refid": "R"}
    del asked[name]
    assert kpay.send(asked).json()["retcode"] == 603


def test_tokenlist_has_the_oddities_of_the_guide(own_kpay: Kpay) -> None:
    """`reply` is a list, `tid` the number 0, the refid another one, and all cards of a client have one token."""
    asked = {"action": "tokenlist", "msisdn": CLIENT, "refid": "YR1600116349"}
    assert own_kpay.send(asked).json()["reply"] == []
    for number in ("5555555555554444", "4111 1111 1111 1111"):
        own_kpay.write(own_kpay.invite(CLIENT)["url"], number=number)
    answer = own_kpay.send(asked).json()
    assert list(answer) == ["reply", "success", "authkey", "tid", "refid", "retcode"]
    assert (answer["success"], answer["tid"], answer["retcode"]) == (1, 0, 0)
    assert answer["refid"] != asked["refid"]
    assert re.fullmatch(r"ABCD\d{10}", answer["refid"])
    token = answer["reply"][0]["token"]
    assert str(uuid.UUID(token, version=4)) == token
    assert answer["reply"] == [
        {"cardhash": "555555xxxxxx4444", "scheme": "MASTERCARD", "token": token},
        {"cardhash": "411111xxxxxx1111", "scheme": "VISA", "token": token},
    ]
    assert own_kpay.saved("250788312935") == []


def test_one_address_saves_one_card(kpay: Kpay) -> None:
    """The page saves a card for the client who was asked, says so, and saves no second one."""
    msisdn = "250788000001"
    url = kpay.invite(msisdn)["url"]
    assert msisdn in kpay.http.get(url).text
    for number in ("5555555555554444", "4111111111111111", "1"):
        answer = kpay.http.post(url, data={"number": number, "expiry": "12/49", "cvv": "123"}, follow_redirects=True)
        assert answer.status_code == 200
        assert "Card saved" in answer.text
        assert "555555xxxxxx4444" in answer.text
    assert [card["cardhash"] for card in kpay.saved(msisdn)] == ["555555xxxxxx4444"]


@pytest.mark.parametrize(
    ("field", "value"), [("number", "4242424242424242"), ("expiry", "01/20"), ("cvv", "9876"), ("cvv", "")]
)
def test_bad_card_is_not_saved(kpay: Kpay, field: str, value: str) -> None:
    """The form is checked as at the checkout; the address stays good."""
    msisdn = "250788000002"
    url = kpay.invite(msisdn)["url"]
    before = kpay.saved(msisdn)
    answer = kpay.write(url, **{field: value})
    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text
    assert "9876" not in answer.text.replace(url, "")
    assert kpay.saved(msisdn) == before
    assert kpay.write(url).status_code == 303


def test_card_saved_again_is_listed_once(kpay: Kpay) -> None:
    """A card that was there already becomes the one saved last."""
    msisdn = "250788000003"
    for number in ("5555555555554444", "4111111111111111", "5555555555554444"):
        kpay.write(kpay.invite(msisdn)["url"], number=number)
    assert [card["scheme"] for card in kpay.saved(msisdn)] == ["VISA", "MASTERCARD"]


@pytest.mark.parametrize("pmethod", ["cc", "tokenpay"])
@pytest.mark.parametrize("cvv", ["123", 123, "0123"])
def test_tokenpay_has_the_shape_of_the_guide(kpay: Kpay, pmethod: str, cvv: object) -> None:
    """A charge is answered at once, without a retcode and with a `}` too many; nobody is told, checkstatus knows."""
    order = kpay.token_order(kpay.save(), pmethod=pmethod, cvv=cvv)
    text = kpay.send(order).text
    assert text.endswith('"}}')
    answer = json.loads(text[:-1])
    assert list(answer) == ["tid", "refid", "momtransactionid", "statusdesc", "comtime", "statusid"]
    assert (answer["refid"], answer["statusdesc"], answer["statusid"]) == (order["refid"], "APPROVED", "01")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", answer["comtime"])
    told = kpay.checkstatus(tid=answer["tid"])
    assert (told["statusid"], told["momtransactionid"]) == ("01", answer["momtransactionid"])
    time.sleep(2 * DELAY)
    truth = kpay.truth(order["refid"])
    assert (truth["requests"], truth["postbacks"], truth["behaviour"]) == (1, [], "tokenpay")


@pytest.mark.parametrize(
    ("number", "cvv", "statusid", "words"),
    [
        ("4000000000000002", "123", "02", "DECLINED"),
        ("4000000000009995", "123", "02", "DECLINED: insufficient funds"),
        ("4000000000000119", "123", "682", "An internal error caused the operation to fail"),
        ("5555555555554444", "000", "02", "DECLINED: CVV"),
    ],
)
def test_tokenpay_declined(kpay: Kpay, number: str, cvv: str, statusid: str, words: str) -> None:
    """A declining card, or the CVV 000, fails in the same shape, with no momtransactionid; checkstatus agrees."""
    order = kpay.token_order(kpay.save(number), cvv=cvv)
    text = kpay.send(order).text
    assert text.endswith('"}}')
    answer = json.loads(text[:-1])
    assert (answer["statusid"], answer["statusdesc"], answer["momtransactionid"]) == (statusid, words, "")
    told = kpay.checkstatus(refid=order["refid"])
    assert (told["statusid"], told["statusdesc"]) == (statusid, words)


def test_tokenpay_charges_the_card_saved_last(kpay: Kpay) -> None:
    """Of several cards under one token the last one pays, or does not."""
    msisdn = "250788000004"
    for number, statusid in (("5555555555554444", "01"), ("4000000000000002", "02"), ("4111111111111111", "01")):
        kpay.write(kpay.invite(msisdn)["url"], number=number)
        order = kpay.token_order(kpay.saved(msisdn)[0]["token"])
        kpay.send(order)
        assert kpay.truth(order["refid"])["statusid"] == statusid


@pytest.mark.parametrize("name", [*REQUIRED_OF_TOKENPAY, "amount", "cvv"])
@pytest.mark.parametrize("value", [None, "", [], True])
def test_tokenpay_misses_a_parameter(kpay: Kpay, name: str, value: object) -> None:
    """Each required parameter must be there, be of its type, and not be empty."""
    order = kpay.token_order(kpay.save(), **{name: value})
    assert kpay.send(order).json()["retcode"] == 603
    assert "statusid" not in kpay.truth(order.get("refid") or "never")


@pytest.mark.parametrize(
    ("change", "retcode"),
    [
        ({"amount": 0}, 603),
        ({"amount": "4200"}, 603),
        ({"currency": "EUR"}, 603),
        ({"cvv": "12"}, 603),
        ({"cvv": "12345"}, 603),
        ({"cvv": "12a"}, 603),
        ({"cvv": 12}, 603),
        ({"cvv": 123.0}, 603),
        ({"retailerid": "03"}, 604),
        ({"token": "2C6AA59B-166D-442C"}, 606),
        ({"token": "2C6AA59B-166D-442C", "msisdn": "250780000032"}, 606),
        ({"pmethod": "momo"}, 609),
    ],
)
def test_tokenpay_refused(kpay: Kpay, change: dict[str, object], retcode: int) -> None:
    """A wrong value and an unknown token are refused without a tid, and leave only the count of requests."""
    order = kpay.token_order(kpay.save(), **change)
    answer = kpay.send(order).json()
    assert (answer["retcode"], answer["success"], answer["tid"]) == (retcode, 0, "")
    assert kpay.truth(order["refid"]) == {"refid": order["refid"], "requests": 1}
    assert kpay.checkstatus(refid=order["refid"])["statusid"] == "611"


def test_tokenpay_of_a_used_refid_is_608(kpay: Kpay) -> None:
    """A refid is used once, be it by `pay` or by `tokenpay`."""
    order, token = kpay.order("005"), kpay.save()
    kpay.send(order)
    assert kpay.send(kpay.token_order(token, refid=order["refid"])).json()["retcode"] == 608
    truth = kpay.truth(order["refid"])
    assert (truth["requests"], truth["pmethod"], truth["statusid"]) == (2, "momo", "03")


@pytest.mark.parametrize(("number", "recorded"), [("032", True), ("033", False)])
def test_tokenpay_of_unknown_outcome(kpay: Kpay, number: str, *, recorded: bool) -> None:
    """A magic number's fault is the charge's: no answer, and only the ledger knows."""
    order = kpay.token_order(kpay.save(), number)
    with pytest.raises(httpx2.RemoteProtocolError):
        kpay.send(order)
    assert ("tid" in kpay.truth(order["refid"])) == recorded
    if recorded:
        kpay.postbacks(order["refid"])
        assert kpay.truth(order["refid"])["statusid"] == "01"


def test_tokenpay_held(kpay: Kpay) -> None:
    """030 gives no answer to a charge in the caller's time, and charges."""
    order = kpay.token_order(kpay.save(), "030")
    with pytest.raises(httpx2.ReadTimeout):
        kpay.send(order, timeout=0.3)
    kpay.postbacks(order["refid"])
    assert kpay.truth(order["refid"])["statusid"] == "01"


def test_tokenpay_with_a_magic_number_goes_before_the_card(kpay: Kpay) -> None:
    """A magic number decides as it does for `pay`, whatever the card; 000 is no choice, and the card decides."""
    token = kpay.save("4000000000000002")
    order = kpay.token_order(token, "001")
    assert kpay.send(order).json()["reply"] == "PENDING"
    assert b"declined by the payer" in kpay.postbacks(order["refid"])[0].body
    order = kpay.token_order(token, "000")
    kpay.send(order)
    assert kpay.truth(order["refid"])["statusdesc"] == "DECLINED"


def test_pending_tokenpay_has_a_card_page(kpay: Kpay) -> None:
    """A charge that a magic number leaves pending has the card checkout, and without a redirecturl one stays there."""
    url = kpay.checkout(kpay.token_order(kpay.save(), "005"))
    assert "Card number" in kpay.http.get(url).text
    answer = kpay.http.post(url, data={"do": "cancel"}, follow_redirects=True)
    assert "cancelled by the payer" in answer.text
    assert "<a " not in answer.text


@pytest.mark.parametrize("action", ["pay", "tokenpay"])
def test_secrets_are_not_kept(own_kpay: Kpay, action: str) -> None:
    """Neither CVV nor token of a request is anywhere in the ledger, nor on a page."""
    token = own_kpay.save()
    order = own_kpay.token_order(
        token, "005", cvv="739", action=action, pmethod="cc", bankid="000", redirecturl="https://x"
    )
    url = own_kpay.checkout(order)
    for shown in (own_kpay.http.get("/_simulator/payments"), own_kpay.http.get("/"), own_kpay.http.get(url)):
        assert token not in shown.text
        assert '"739"' not in shown.text
        assert ">739<" not in shown.text
    assert order["refid"] in own_kpay.http.get("/").text


def test_tokens_need_credentials(kpay: Kpay) -> None:
    """Whoever shows no credentials is told nothing of saved cards."""
    for action in ("addtoken", "tokenlist", "tokenpay"):
        answer = httpx2.post(kpay.url, json={"action": action, "msisdn": CLIENT, "refid": "R"})
        assert answer.json()["retcode"] == 600
