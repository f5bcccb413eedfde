"""What payers see and do: the card checkout and the phone; that a payment is settled once, and a form is checked."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from app.simulator.codes import PMETHODS
from app.simulator.script import DECLINED

from .support import DELAY, Kpay, until

BY_PHONE = sorted(PMETHODS - {"cc"})


def test_card_payment_waits_for_its_payer(kpay: Kpay) -> None:
    """A card payment whose number chooses nothing is pending until the form is sent; then the returl is told first."""
    order = kpay.card_order(currency="USD", logourl="https://www.iduka.rw/logo.png")
    url = kpay.checkout(order)
    time.sleep(4 * DELAY)
    assert kpay.truth(order["refid"])["statusid"] == "03"
    page = kpay.http.get(url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for words in ("4,200 USD", order["details"], order["logourl"], "5101 1800 0000 0007", "4000 0000 0000 0002"):
        assert words in page.text
    sent_on = kpay.write(url)
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, order["redirecturl"])
    (postback,) = kpay.listener.received[order["refid"]]
    assert json.loads(postback.body)["statusid"] == "01"
    assert kpay.checkstatus(refid=order["refid"])["statusid"] == "01"


def test_card_payer_cancels(kpay: Kpay) -> None:
    """Cancel needs no card, fails the payment, tells the returl and sends the payer on."""
    order = kpay.card_order()
    sent_on = kpay.write(kpay.checkout(order), number="", expiry="", cvv="", do="cancel")
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, order["redirecturl"])
    truth = kpay.truth(order["refid"])
    assert (truth["statusid"], truth["statusdesc"]) == ("02", "Transaction cancelled by the payer")
    assert len(kpay.postbacks(order["refid"])) == 1


@pytest.mark.parametrize("number", ["000", "001"])
def test_magic_card_payment_plays_by_itself(kpay: Kpay, number: str) -> None:
    """A card payment with a magic number, that of the ordinary payer too, needs no page."""
    order = kpay.card_order(msisdn=f"250780000{number}")
    kpay.send(order)
    kpay.postbacks(order["refid"])
    assert kpay.truth(order["refid"])["behaviour"] == number


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("number", "4242 4242 4242 4242", "not one of the test cards"),
        ("number", "", "not one of the test cards"),
        ("number", '"><script>', "not one of the test cards"),
        ("expiry", "", "a month and a year"),
        ("expiry", "13/49", "a month and a year"),
        ("expiry", "1/49", "a month and a year"),
        ("expiry", f"{datetime.now(UTC) - timedelta(days=40):%m/%y}", "expired"),
        ("cvv", "", "3 digits"),
        ("cvv", "12", "3 digits"),
        ("cvv", "9876", "3 digits"),
        ("cvv", "12\u0663", "3 digits"),
    ],
)
def test_bad_form_changes_nothing(kpay: Kpay, field: str, value: str, words: str) -> None:
    """A wrong field is 422 with the reason beside it, and neither the ledger nor the returl hears of it."""
    order = kpay.card_order()
    url = kpay.checkout(order)
    before = kpay.truth(order["refid"])
    answer = kpay.write(url, **{field: value})
    assert answer.status_code == 422
    error = answer.text.split(f'id="{field}-error"')[1].split("</p>")[0]
    assert words in error
    assert answer.text.count('class="error"') == answer.text.count("aria-invalid") - 1 == 1
    assert "<script" not in answer.text
    assert kpay.truth(order["refid"]) == before
    assert kpay.listener.received[order["refid"]] == []
    assert kpay.write(url).status_code == 303


@pytest.mark.parametrize("written", ["%m/%y", "%m%y", "%m / %Y", " %m/%y "])
def test_card_is_good_until_its_month_is_over(kpay: Kpay, written: str) -> None:
    """A card that expires this month is taken, its date written as keypads and browsers have it."""
    order = kpay.card_order()
    this_month = datetime.now(UTC) + timedelta(hours=2)
    assert kpay.write(kpay.checkout(order), expiry=this_month.strftime(written)).status_code == 303


def test_form_of_another_kind_is_a_bad_one(kpay: Kpay) -> None:
    """A body that is no form, or a form with files, is checked like an empty one."""
    order = kpay.card_order()
    url = kpay.checkout(order)
    assert kpay.http.post(url, json={"do": "pay"}).status_code == 422
    assert kpay.http.post(url, files={"number": b"5555555555554444"}).status_code == 422
    assert kpay.truth(order["refid"])["statusid"] == "03"


def test_card_is_shown_nowhere(kpay: Kpay) -> None:
    """The CVV is in no page that comes back and, like the number, not in the ledger."""
    order = kpay.card_order()
    url = kpay.checkout(order)
    again = kpay.write(url, number="4000 0000 0000 1234", cvv="739")
    assert "4000 0000 0000 1234" in again.text
    assert "739" not in again.text.replace(url, "")
    kpay.write(url, number="4988438843884305", cvv="739")
    ledger = json.dumps(
        [item for item in kpay.http.get("/_simulator/payments").json()["items"] if item["refid"] == order["refid"]]
    )
    assert "4988438843884305" not in ledger
    assert '"739"' not in ledger
    assert "cvv" not in ledger


def test_settled_once(kpay: Kpay) -> None:
    """Of many that send the form at the same time one settles, all are sent on, and the returl is told once."""
    order = kpay.card_order()
    url = kpay.checkout(order)
    presses = [{}, {"number": "4000000000000002"}, {"do": "cancel"}] * 3
    with ThreadPoolExecutor(len(presses)) as pool:
        answers = list(pool.map(lambda press: kpay.write(url, **press), presses))
    assert {(answer.status_code, answer.headers["location"]) for answer in answers} == {(303, order["redirecturl"])}
    time.sleep(2 * DELAY)
    (sent,) = kpay.truth(order["refid"])["postbacks"]
    assert sent["statusid"] == kpay.truth(order["refid"])["statusid"]
    assert len(kpay.listener.received[order["refid"]]) == 1


def test_going_back_and_sending_again_changes_nothing(kpay: Kpay) -> None:
    """A settled payment shows its end and the way to the shop; another form, a bad one too, just sends the payer on."""
    order = kpay.card_order()
    url = kpay.checkout(order)
    kpay.write(url)
    before = kpay.truth(order["refid"])
    page = kpay.http.get(url)
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "Paid" in page.text
    assert f'href="{order["redirecturl"]}"' in page.text
    assert "<form" not in page.text
    for fields in ({}, {"do": "cancel"}, {"number": "1"}):
        assert kpay.write(url, **fields).headers["location"] == order["redirecturl"]
    assert kpay.truth(order["refid"]) == before
    assert len(kpay.listener.received[order["refid"]]) == 1


def test_payer_does_not_wait_for_a_slow_shop(kpay: Kpay) -> None:
    """A returl that never answers is called, and the payer is sent on after about a second."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        order = kpay.card_order(returl=f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        url = kpay.checkout(order)
        began = time.monotonic()
        assert kpay.write(url).status_code == 303
        assert time.monotonic() - began < 3
        (sent,) = kpay.truth(order["refid"])["postbacks"]
        assert (sent["statusid"], sent["status"]) == ("01", None)


@pytest.mark.parametrize("redirecturl", ["javascript:alert(1)", "no url", "http://\ud800/", " https://x"])
def test_payer_is_sent_to_web_addresses_only(kpay: Kpay, redirecturl: str) -> None:
    """A redirecturl that no browser may be sent to leaves the payer at the page, which has no link to it."""
    order = kpay.card_order(redirecturl=redirecturl, logourl=redirecturl)
    answer = kpay.http.post("/", content=json.dumps(order)).json()
    assert "<img" not in kpay.http.get(answer["url"]).text
    assert kpay.write(answer["url"]).headers["location"] == f"/checkout/{answer['tid']}"
    assert "<a " not in kpay.http.get(answer["url"]).text


@pytest.mark.parametrize(
    ("button", "statusid", "heading"), [("approve", "01", "<h1>Paid</h1>"), ("reject", "02", "<h1>Not paid</h1>")]
)
def test_phone(kpay: Kpay, button: str, statusid: str, heading: str) -> None:
    """A payer with a phone approves or rejects on a page; the returl is told, and the page says what was chosen."""
    order = kpay.order("005")
    url = kpay.checkout(order)
    page = kpay.http.get(url).text
    assert "250780000005 is asked to approve 4,200 RWF" in page
    assert 'value="approve"' in page
    assert 'value="reject"' in page
    chosen = kpay.http.post(url, data={"do": button}, follow_redirects=True)
    assert heading in chosen.text
    assert f'href="{order["redirecturl"]}"' in chosen.text
    assert json.loads(kpay.postbacks(order["refid"])[0].body)["statusid"] == statusid
    truth = kpay.truth(order["refid"])
    assert truth["statusid"] == statusid
    assert (truth["statusdesc"] == DECLINED.statusdesc) == (button == "reject")
    kpay.http.post(url, data={"do": "approve" if button == "reject" else "reject"})
    assert kpay.truth(order["refid"]) == truth


@pytest.mark.parametrize("pmethod", BY_PHONE)
def test_every_other_method_has_a_phone(kpay: Kpay, pmethod: str) -> None:
    """Whatever is no card is approved like mobile money; an unknown button is 422 and changes nothing."""
    order = kpay.order("005", pmethod=pmethod)
    url = kpay.checkout(order)
    assert kpay.http.post(url, data={"do": "pay"}).status_code == 422
    assert kpay.truth(order["refid"])["statusid"] == "03"
    kpay.http.post(url, data={"do": "approve"})
    assert kpay.truth(order["refid"])["statusid"] == "01"


def test_page_ends_what_was_in_store(kpay: Kpay) -> None:
    """What the payer chose on the page is not undone by the magic number, and hidden from checkstatus no more."""
    order = kpay.order("025")
    url = kpay.checkout(order)
    kpay.http.post(url, data={"do": "reject"})
    assert kpay.checkstatus(refid=order["refid"])["statusid"] == "02"
    time.sleep(4 * DELAY)
    assert kpay.truth(order["refid"])["statusid"] == "02"
    assert len(kpay.listener.received[order["refid"]]) == 1


def test_postback_of_the_page_is_sent_again(kpay: Kpay) -> None:
    """A postback that met 503 comes again while the payer is elsewhere."""
    order = kpay.card_order()
    kpay.listener.answers[order["refid"]] = [503]
    kpay.write(kpay.checkout(order))
    until(lambda: [sent["status"] for sent in kpay.truth(order["refid"])["postbacks"]] == [503, 200])


@pytest.mark.parametrize("path", ["/checkout/A1", "/checkout/%00", "/token/TK31", "/token/%F0%9F%8E%89"])
def test_unknown_page_is_404(kpay: Kpay, path: str) -> None:
    """A tid that is none has a page that says so, whatever is done to it."""
    for answer in (kpay.http.get(path), kpay.write(path)):
        assert answer.status_code == 404
        assert "<h1>Not found</h1>" in answer.text


@pytest.mark.parametrize("pmethod", ["cc", "momo"])
def test_hostile_text_harms_no_page(kpay: Kpay, pmethod: str) -> None:
    """NUL, a lone surrogate and markup in whatever a page shows are text there, before and after the payment."""
    hostile = "\x00\ud800<script>alert(1)</script>\"'{{ 7 * 7 }}"
    order = kpay.order(
        "005", pmethod=pmethod, details=hostile, msisdn=f"{hostile}0000005", logourl=f"https://{hostile}"
    )
    url = kpay.http.post("/", content=json.dumps(order)).json()["url"]
    for page in (kpay.http.get(url), kpay.http.post(url, data={"do": "?"})):
        assert "&lt;script&gt;" in page.text
        assert "<script" not in page.text
        assert "{{ 7 * 7 }}" in page.text
    kpay.http.post(url, data={"do": "cancel" if pmethod == "cc" else "reject"})
    settled = kpay.http.get(url).text
    assert "Not paid" in settled
    assert "<script" not in settled
