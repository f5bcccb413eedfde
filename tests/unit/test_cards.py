"""What K-Pay's answers about saved cards mean: the guide's own examples, refusals, and what cannot be made out."""

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kpay.cards import Card, Page, Refusal, of_addtoken, of_tokenlist
from app.kpay.wire import Message, read

QUICK = settings(max_examples=300, database=None, deadline=None)
TOKEN = "7dc23f6e-00ae-473a-bb9f-b95b8d79bc85"

ADDED = (
    '{"reply":"token generation url saved","url":  \n'
    '"https://pay.esicia.com/token/TK31593123161" ,"success":1,"authkey":  \n'
    '"79j2b4d32jdc9efu2qfhej503" ,"tid":"TK31593123161", "refid":  \n'
    '"ABCD1593123162","retcode":0}'
)
LISTED = (
    '{"reply":[{"cardhash":"555555xxxxxx4444","scheme":"MASTERCARD","token":"7dc23  \n'
    "f6e-00ae-473a-bb9f-  \n"
    'b95b8d79bc85"}, {"cardhash":"424242xxxxxx4242","scheme":"VISA","token":"7dc23f  \n'
    "6e-00ae-473a-bb9f-  \n"
    'b95b8d79bc85"}], "success":1,"authkey":"ujrkm01p4anmpci3ctne8k37p2","tid":0,"r  \n'
    'efid":"ABCD1593510281","retcode":0}'
)
PAGE = Page("TK31593123161", "https://pay.esicia.com/token/TK31593123161")
CARDS = [Card("555555xxxxxx4444", "MASTERCARD", TOKEN), Card("424242xxxxxx4242", "VISA", TOKEN)]


def added(**members: object) -> Page | Refusal:
    """Read an answer to an addtoken."""
    return of_addtoken(read(json.dumps(members).encode()))


def listed(**members: object) -> Sequence[Card] | Refusal:
    """Read an answer to a tokenlist."""
    return of_tokenlist(read(json.dumps(members).encode()))


FORMS: dict[str, Callable[[str], bytes]] = {
    "as-printed": str.encode,
    "in-one-line": lambda text: text.replace("  \n", "").encode(),
    "brace-too-many": lambda text: text.encode() + b"}",
    "trailing-comma": lambda text: f"{text[:-1]},\r\n}}".encode(),
    "byte-order-mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "success-and-code-as-text": lambda text: (
        text.replace('"success":1', '"success":"1"').replace('"retcode":0', '"retcode":"0"').encode()
    ),
}
"""Ways to write down one answer."""


@pytest.mark.parametrize("form", FORMS)
def test_guide_addtoken(form: str) -> None:
    """The guide's page is found, however its answer is written down."""
    assert of_addtoken(read(FORMS[form](ADDED))) == PAGE


@pytest.mark.parametrize("form", FORMS)
def test_guide_tokenlist(form: str) -> None:
    """The guide's two cards with one token are both there, and the breaks inside the tokens are not."""
    assert of_tokenlist(read(FORMS[form](LISTED))) == CARDS


def test_guide_tokenlist_without_its_breaks_names_another_refid() -> None:
    """The guide asks under one refid and prints an answer under another, with `tid` 0: cards all the same."""
    message = read(LISTED.replace("  \n", "").encode())
    assert message is not None
    assert (message.refid, message.tid) == ("ABCD1593510281", None)  # it was asked under ABCD1593123162
    assert of_tokenlist(message) == CARDS


def test_a_page_without_a_tid() -> None:
    """A `tid` of 0, or none, is no tid; the page is good without."""
    for tid in ({"tid": 0}, {"tid": "0"}, {"tid": ""}, {}):
        assert added(url="https://x", success=1, retcode=0, **tid) == Page(None, "https://x")


@pytest.mark.parametrize("members", [{"reply": "saved"}, {"url": ""}, {"url": None}, {"url": ["https://x"]}], ids=str)
def test_an_answer_that_names_no_page(members: dict[str, object]) -> None:
    """An answer that accepts and names no page is a refusal in our words."""
    assert added(success=1, retcode=0, **members) == Refusal("K-Pay's answer names no page")


@pytest.mark.parametrize("success", [1, "1", True, None])
def test_a_reply_that_is_text_lists_no_cards(success: object) -> None:
    """Words where the list should be are not read as "no cards": they are what K-Pay said."""
    assert listed(reply="here you are", success=success, retcode=0) == Refusal("here you are")


def test_a_list_with_gaps_as_php_writes_it() -> None:
    """An object of objects where the list should be is the list; a card by itself is a list of one."""
    card = {"cardhash": "555555xxxxxx4444", "scheme": "MASTERCARD", "token": "t"}
    assert listed(reply={"0": card, "2": card | {"token": "u"}}, retcode=0) == [
        Card(**card),
        Card(**card | {"token": "u"}),
    ]
    assert listed(reply=card, retcode=0) == [Card(**card)]


def test_a_card_that_says_two_things_is_a_refusal() -> None:
    """A card with two different tokens is not charged by either."""
    body = b'{"reply":[{"token":"a","token":"b"}],"retcode":0}'
    assert of_tokenlist(read(body)) == Refusal("K-Pay's answer contradicts itself")


@pytest.mark.parametrize("members", [{"reply": []}, {"reply": ""}, {"reply": None}, {}], ids=str)
def test_a_payer_without_cards(members: dict[str, object]) -> None:
    """An empty list, or none at all, is a payer without saved cards."""
    assert listed(success=1, retcode=0, **members) == []


ODD_ITEMS = {
    "no-token": {"cardhash": "4", "scheme": "VISA"},
    "token-null": {"token": None},
    "token-empty": {"token": ""},
    "token-blank": {"token": " \r\n\t "},
    "token-structure": {"token": {"a": TOKEN}},
    "token-list": {"token": [TOKEN]},
    "empty": {},
    "text": TOKEN,
    "number": 5,
    "null": None,
    "true": True,
    "list": [{"token": TOKEN}],
}


@pytest.mark.parametrize("odd", ODD_ITEMS.values(), ids=ODD_ITEMS)
def test_an_item_that_nobody_can_pay_by_is_left_out(odd: object) -> None:
    """An item without a token, or that is no object, is left out, and its neighbours stay in their order."""
    first, last = {"cardhash": "4", "scheme": "VISA", "token": "a"}, {"cardhash": "5", "scheme": "MC", "token": "b"}
    assert listed(reply=[first, odd, last], retcode=0) == [Card("4", "VISA", "a"), Card("5", "MC", "b")]


def test_a_card_that_is_described_badly() -> None:
    """A card is known by its token: what describes it may be missing, a number or a structure, and more may stand."""
    found = listed(reply=[{"token": 123}, {"token": "t", "cardhash": 5, "scheme": {}, "expiry": "12/30"}], retcode=0)
    assert found == [Card("", "", "123"), Card("5", "", "t")]


@pytest.mark.parametrize("shown", [repr, str, ascii], ids=["repr", "str", "ascii"])
def test_fault_53_a_card_does_not_show_its_token(shown: type) -> None:
    """A card that is printed, in a traceback or a log, shows everything but its token."""
    told = shown(CARDS)
    assert TOKEN not in told
    assert "555555xxxxxx4444" in told


TWICE = {
    "two-texts": '"reply":"a","reply":"b"',
    "a-list-and-a-text": '"reply":[{"token":"a"}],"reply":"b"',
    "a-text-and-a-list": '"reply":"a","reply":[{"token":"b"}]',
    "two-lists": '"reply":[{"token":"a"}],"reply":[{"token":"b"}]',
    "two-retcodes": '"reply":[{"token":"a"}],"retcode":602',
    "two-urls": '"url":"https://x","url":"https://y"',
    "success-twice": '"url":"https://x","reply":[],"success":0,"success":1',
}


@pytest.mark.parametrize("members", TWICE.values(), ids=TWICE)
def test_an_answer_that_says_two_things_is_a_refusal(members: str) -> None:
    """A member that stands twice with different values makes the answer prove nothing: no card and no page."""
    message = read(f'{{{members},"url":"https://x","retcode":0}}'.encode())
    contradiction = Refusal("K-Pay's answer contradicts itself")
    assert (of_tokenlist(message), of_addtoken(message)) == (contradiction, contradiction)


SAID = {
    "600": "Invalid username / password combination",
    "601": "Invalid remote user",
    "602": "Location / IP not whitelisted",
    "603": "Empty parameter",
    "604": "Unknown retailer",
    "605": "Retailer not enabled",
    "606": "Error processing",
    "607": "Failed mobile money transaction",
    "608": "Used ref id",
    "609": "Unknown Payment method",
    "610": "Unknown or not enabled Financial institution",
    "611": "K-Pay refused without a word",  # no code of a request's in the guide
    "999": "K-Pay refused without a word",
}


@pytest.mark.parametrize("retcode", SAID)
@pytest.mark.parametrize("member", ["retcode", "statusid"])
def test_each_code_refuses(member: str, retcode: str) -> None:
    """Every code but 0 refuses both calls, as text and as number, in K-Pay's words or else the guide's."""
    for code in (retcode, int(retcode)):
        told = {"reply": [{"token": "t"}], "url": "https://x", member: code}
        for refused in (added(**told), listed(**told), added(**told, success=1), listed(**told, success=1)):
            assert refused == Refusal(SAID[retcode], retcode)
        for words in ({"reply": "K-Pay's words"}, {"reply": "other", "statusdesc": "K-Pay's words"}):
            for refused in (added(**told | words), listed(**told | words)):
                assert refused == Refusal("K-Pay's words", retcode)


@pytest.mark.parametrize("success", [0, "0", False, "false"])
def test_success_0_without_a_code_refuses(success: object) -> None:
    """`success` 0 is a refusal although there is no code, and although there are a page and cards."""
    told = {"success": success, "url": "https://x"}
    for refused in (added(**told, reply="not today"), listed(**told, reply="not today")):
        assert refused == Refusal("not today")
    for refused in (added(**told), listed(**told, reply=[{"token": "t"}])):
        assert refused == Refusal("K-Pay refused without a word")
    for refused in (added(**told, retcode=0), listed(**told, reply=[{"token": "t"}], retcode=0)):
        assert isinstance(refused, Refusal)


@pytest.mark.parametrize("body", [b"<html><h1>502</h1></html>", b"", b"[]", b"null", LISTED[:-20].encode()], ids=ascii)
def test_what_cannot_be_read_is_a_refusal(body: bytes) -> None:
    """HTML, nothing, no object and cut JSON are refusals that say so."""
    message = read(body, "text/html")
    unreadable = Refusal("K-Pay's answer could not be read")
    assert message is None
    assert (of_addtoken(message), of_tokenlist(message)) == (unreadable, unreadable)


def test_a_form_is_read_too() -> None:
    """A refusal that comes as a form has K-Pay's words and code, too."""
    message = read(b"reply=Not+here&retcode=602&success=0", "application/x-www-form-urlencoded")
    assert of_addtoken(message) == of_tokenlist(message) == Refusal("Not here", "602")


def check(message: Message | None) -> None:
    """Read one message both ways; fails unless what comes is of the kind that is promised."""
    page, found = of_addtoken(message), of_tokenlist(message)
    assert isinstance(page, Page | Refusal)
    if isinstance(page, Page):
        assert page.url
    for refused in (page, found):
        assert not isinstance(refused, Refusal) or refused.detail
    if not isinstance(found, Refusal):
        assert all(card.token and not set(card.token) & set(" \t\r\n") for card in found)


@QUICK
@given(st.binary(max_size=2_000), st.sampled_from(["", "application/json", "text/html", "multipart/form-data"]))
def test_no_bytes_raise(body: bytes, content_type: str) -> None:
    """Whatever bytes come, they are a page, cards or a refusal."""
    check(read(body, content_type))


@QUICK
@given(st.integers(0, len(LISTED)), st.integers(0, 40), st.binary(max_size=40), st.sampled_from([ADDED, LISTED]))
def test_no_damaged_answer_raises(at: int, cut: int, put: bytes, good: str) -> None:
    """The guide's answers with a piece torn out and other bytes put in never raise."""
    body = good.encode()
    check(read(body[:at] + put + body[at + cut :]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["token", "cardhash", "scheme", "x"]) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


@QUICK
@given(
    st.dictionaries(st.sampled_from(["reply", "url", "tid", "retcode", "statusid", "success", "statusdesc"]), VALUES)
)
def test_no_values_raise(members: dict[str, object]) -> None:
    """Any JSON in any member of an answer never raises."""
    check(read(json.dumps(members).encode()))


@pytest.mark.parametrize(
    "body", [b'{"message":"Server Error"}', b"{}", b"error=Unauthorized&refid=x", b'{"refid":"x"}']
)
def test_an_answer_that_says_nothing_is_not_no_cards(body: bytes) -> None:
    """An error page in JSON, or a form, lists no cards and is a refusal."""
    assert isinstance(of_tokenlist(read(body)), Refusal)


def test_an_error_on_http_is_a_refusal() -> None:
    """What a server that failed says of cards, or of a page, is not believed."""
    said = Message(retcode="0", success=True, url="https://x", replies=())
    assert of_tokenlist(said) == []
    for status in (400, 401, 500, 503):
        assert isinstance(of_tokenlist(said, status), Refusal)
        assert isinstance(of_addtoken(said, status), Refusal)
