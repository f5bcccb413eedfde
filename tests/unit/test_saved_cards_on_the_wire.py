"""Saved cards on the wire: what K-Pay is sent, that it is sent once, and that its answer's echo is taken out."""

import asyncio
import html
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from pydantic import SecretStr

from app.kpay import request
from app.kpay.client import Answer, InDoubt, NotSent, connect
from app.kpay.discreet import UNDERSTOOD
from app.kpay.wire import MAX_VALUE

from .servers import (
    Behaviour,
    Server,
    bound,
    dribbles,
    is_silent,
    not_sent,
    resets,
    says,
    sends,
    serving,
    then_close,
    until,
)

pytestmark = pytest.mark.anyio

TOKEN, CVV = "2C6AA59B-166D-442C", "123"
CARD = request.SavedCard(SecretStr(TOKEN), SecretStr(CVV))
MERCHANT = request.Merchant("04")
WAYS = request.Ways("https://vote.rw/response", "https://vote.rw/wait")
PAYMENT: Mapping[str, Any] = {
    "refid": "YR1600116349",
    "amount": 520,
    "currency": "RWF",
    "pmethod": "cc",
    "bankid": "000",
    "msisdn": "250788312934",
    "email": "kaneza@example.rw",
    "details": "Airtime TopUp",
    "cname": "INNOCENT KANEZA",
    "cnumber": "250788312934",
    "redirecturl": "https://shop.example.rw/done",
    "logourl": "https://shop.example.rw/logo.png",
    "orderid": "1042",
    "metadata": {"cashier": "7"},
    "client": "shop",
}
APPROVED = (
    b'{"tid":"E8538321600116364","refid":"YR1600116349","momtransactionid":"D6JFZF","statusdesc":"APPROVED",'
    b'"comtime":"2020-09-14 22:46:11","statusid":"01"}}'
)


def wanted(merchant: request.Merchant = MERCHANT, **changes: object) -> dict[str, Any]:
    """Return what a payment by saved card sends."""
    return request.tokenpay({**PAYMENT, **changes}, CARD, merchant, WAYS)


async def sent_to_kpay(action: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Make one call and return the members that K-Pay got."""
    async with serving(says(APPROVED)) as server, connect(server.endpoint()) as kpay:
        await getattr(kpay, action)(asked)
    (got,) = server.requests
    assert got.headers["content-type"] == "application/json"
    return got.json


async def test_addtoken() -> None:
    """An `addtoken` has the guide's five members and no other: here the name is `cusname`, and there is no `cname`."""
    asked = request.addtoken("ABCD1593123162", "250788312934", "ikaneza@example.rw", "Kaneza Innocent", MERCHANT)
    assert await sent_to_kpay("addtoken", asked) == {
        "msisdn": "250788312934",
        "email": "ikaneza@example.rw",
        "cusname": "Kaneza Innocent",
        "action": "addtoken",
        "refid": "ABCD1593123162",
    }


async def test_tokenlist() -> None:
    """A `tokenlist` has the guide's three members and no other."""
    asked = request.tokenlist("ABCD1593123162", "250788312934", MERCHANT)
    expected = {"msisdn": "250788312934", "action": "tokenlist", "refid": "ABCD1593123162"}
    assert await sent_to_kpay("tokenlist", asked) == expected


async def test_tokenpay() -> None:
    """A `tokenpay` has the members of the guide's table and its `redirecturl`, all of them ours to say, no other."""
    got = await sent_to_kpay("tokenpay", wanted())
    assert got == {
        "action": "tokenpay",
        "msisdn": "250788312934",
        "email": "kaneza@example.rw",
        "details": "Airtime TopUp",
        "token": TOKEN,
        "cvv": CVV,
        "refid": "YR1600116349",
        "amount": 520,
        "currency": "RWF",
        "cname": "INNOCENT KANEZA",
        "cnumber": "250788312934",
        "pmethod": "cc",
        "retailerid": "04",
        "returl": "https://vote.rw/response",
        "redirecturl": "https://vote.rw/wait",
    }
    assert (type(got["cvv"]), type(got["amount"])) == (str, int)


async def test_tokenpay_as_the_guides_example_has_it() -> None:
    """By the setting `pmethod` is `tokenpay`; nothing else changes."""
    merchant = request.Merchant("04", tokenpay_pmethod="tokenpay")
    assert await sent_to_kpay("tokenpay", wanted(merchant)) == {
        "action": "tokenpay",
        **wanted(),
        "pmethod": "tokenpay",
    }


async def test_numbers_are_written_as_the_account_wants_them() -> None:
    """With local numbers, all three actions send `07...`; a `cnumber` that is not the payer's own stays as it is."""
    local = request.Merchant("04", "local")
    asked = {
        "addtoken": request.addtoken("R1", "250788312934", "a@b.rw", "K", local),
        "tokenlist": request.tokenlist("R1", "250788312934", local),
        "tokenpay": wanted(local),
    }
    for action, members in asked.items():
        assert (await sent_to_kpay(action, members))["msisdn"] == "0788312934", action
    assert (await sent_to_kpay("tokenpay", wanted(local)))["cnumber"] == "0788312934"
    assert (await sent_to_kpay("tokenpay", wanted(local, cnumber="250788123457")))["cnumber"] == "250788123457"


async def test_a_cvv_keeps_its_zeros() -> None:
    """A `cvv` is text on the wire: zeros in front are part of it."""
    zeros = request.SavedCard(CARD.token, SecretStr("007"))
    assert (await sent_to_kpay("tokenpay", request.tokenpay(PAYMENT, zeros, MERCHANT, WAYS)))["cvv"] == "007"


def test_fault_53_a_saved_card_does_not_show_itself() -> None:
    """A saved card that is printed, alone or in a payment's request, shows neither token nor cvv."""
    for shown in (repr(CARD), str(CARD), f"{CARD}", repr([CARD]), repr({"card": CARD})):
        assert TOKEN not in shown
        assert CVV not in shown


async def test_a_refused_connect_is_not_tried_again() -> None:
    """Nobody listens: a `tokenpay` connects once, and whoever listens a moment later hears nothing of it."""
    before, sock = not_sent("tokenpay"), bound()
    async with connect(Server(sock.getsockname()[1]).endpoint(timeout=4)) as kpay:
        paying = asyncio.create_task(kpay.tokenpay(wanted()))
        await until(lambda: not_sent("tokenpay") > before)
        async with serving(says(APPROVED), sock=sock) as server:
            with pytest.raises(NotSent):
                await paying
            await asyncio.sleep(0.5)  # a `pay` tries again within a twentieth of its time-out
        assert server.connections == 0
    assert not_sent("tokenpay") - before == 1


BROKEN: dict[str, Behaviour] = {
    "closes": sends(b"", close=True),
    "resets": resets,
    "is-silent": is_silent,
    "dribbles": dribbles(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"),
    "cuts-its-head": sends(b"HTTP/1.1 200 OK\r\nContent-", close=True),
    "cuts-its-body": then_close(says(APPROVED, length=500)),
    "echoes-and-is-no-http": sends(f"{TOKEN} {CVV}\r\n\r\n".encode(), close=True),
    "echoes-in-a-broken-head": sends(f"HTTP/1.1 {CVV}{TOKEN} x\r\n: {CVV}\r\n\r\n".encode(), close=True),
}


@pytest.mark.parametrize("behave", BROKEN.values(), ids=BROKEN)
async def test_half_an_answer_leaves_a_tokenpay_in_doubt(behave: Behaviour) -> None:
    """A `tokenpay` whose answer does not come whole is in doubt, is sent once, and its error tells nothing of it."""
    async with serving(behave) as server, connect(server.endpoint(timeout=2)) as kpay:
        with pytest.raises(InDoubt) as caught:
            await kpay.tokenpay(wanted())
        await asyncio.sleep(0.2)
    assert len(server.requests) == server.connections == 1
    for secret in (TOKEN, CVV):
        assert secret not in f"{caught.value}"


@pytest.mark.parametrize("behave", [sends(b"", close=True), resets], ids=["closes", "resets"])
async def test_hanging_up_before_the_request_leaves_a_tokenpay_in_doubt(behave: Behaviour) -> None:
    """A connection that ends before the request was read may have carried it: in doubt, and not sent again."""
    async with serving(behave, reads=False) as server, connect(server.endpoint()) as kpay:
        with pytest.raises(InDoubt):
            await kpay.tokenpay(wanted())
        await asyncio.sleep(0.2)
    assert server.connections == 1


async def heard(body: bytes, content_type: str, card: request.SavedCard = CARD) -> Answer:
    """Return what the client makes of an answer to a `tokenpay`."""
    behave = says(body, "500 Oops", f"Content-Type: {content_type}")
    async with serving(behave) as server, connect(server.endpoint()) as kpay:
        return await kpay.tokenpay(request.tokenpay(PAYMENT, card, MERCHANT, WAYS))


FORM = "application/x-www-form-urlencoded"
ECHOES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "json": (
        "application/json",
        lambda asked: json.dumps({"refid": "R1", "request": asked, "statusdesc": asked["cvv"]}),
    ),
    "json-words": ("text/json", lambda asked: json.dumps({"statusdesc": f"cvv {asked['cvv']}, {asked['token']}."})),
    "json-number": (
        "application/json",
        lambda asked: f'{{"reply":"{asked["token"]}","cvv":{asked["cvv"]},"tid":"A1"}}',
    ),
    "form": (FORM, lambda asked: urlencode({**asked, "statusdesc": f"{asked['token']} {asked['cvv']}"})),
    "html": ("text/html", lambda asked: f"<p>cvv={asked['cvv']};<td>{asked['token']}</td>{html.escape(repr(asked))}"),
    "text": ("text/plain", lambda asked: f"{asked['cvv']}\n_{asked['token']}_\r\n-{asked['cvv']}"),
}
"""How a K-Pay may repeat a request: the content type and the body."""


@pytest.mark.parametrize("echo", ECHOES)
async def test_fault_53_what_an_answer_repeats_of_a_card_is_blotted_out(echo: str) -> None:
    """Token and cvv are taken out of an answer, however it repeats them; what was understood stays, and says so."""
    content_type, written = ECHOES[echo]
    body = written(wanted() | {"tid": "A1"})
    assert TOKEN in body
    assert CVV in body
    answer = await heard(body.encode(), content_type)
    assert (answer.http_status, answer.content_type) == (500, UNDERSTOOD)
    said = {} if answer.message is None else {name: getattr(answer.message, name) for name in ("tid", "statusdesc")}
    kept = json.loads(answer.body)
    assert {name: kept.get(name) for name in said} == said
    for secret in (TOKEN, CVV):
        assert secret not in repr(answer)


PECULIAR = "ab/cd+ef==&<x>"
ESCAPED: dict[str, tuple[str, Callable[[str], str]]] = {
    "json-as-php-writes-it": ("application/json", lambda token: json.dumps({"statusdesc": token}).replace("/", "\\/")),
    "form": (FORM, lambda token: urlencode({"statusdesc": token})),
    "html": ("text/html", lambda token: f"<p>{html.escape(token)}</p>"),
}


@pytest.mark.parametrize("echo", ESCAPED)
async def test_fault_53_a_token_that_an_answer_writes_with_escapes_is_blotted_out(echo: str) -> None:
    """A token with a slash, a plus or an ampersand is taken out where the answer's form writes these with escapes."""
    content_type, written = ESCAPED[echo]
    card = request.SavedCard(SecretStr(PECULIAR), CARD.cvv)
    answer = await heard(written(PECULIAR).encode(), content_type, card)
    assert written(PECULIAR) not in answer.body.decode()
    assert PECULIAR not in repr(answer.message)


BESIDE_AN_ESCAPE = {
    "json-line-break": ("application/json", '{"statusdesc":"bad cvv:\\n123"}'),
    "json-tab": ("application/json", '{"statusdesc":"bad cvv:\\t123"}'),
    "json-no-break-space": ("application/json", '{"statusdesc":"bad cvv\\u00a0123"}'),
    "form-equals-sign": (FORM, "statusdesc=bad+cvv%3D123"),
    "form-space": (FORM, "statusdesc=bad%20123"),
}


@pytest.mark.parametrize("echo", BESIDE_AN_ESCAPE)
async def test_fault_53_a_cvv_beside_an_escape_is_blotted_out(echo: str) -> None:
    """A cvv that stands by itself once the answer is read is taken out, though an escape's letter is beside it."""
    content_type, body = BESIDE_AN_ESCAPE[echo]
    answer = await heard(body.encode(), content_type)
    assert "123" not in repr(answer.message)
    assert b"123" not in answer.body


async def test_an_id_that_holds_the_digits_is_left_alone() -> None:
    """Ids of which the cvv's digits are a part stay as they are, and so do longer numbers in words."""
    told = {"tid": "A123B", "momtransactionid": "1234", "payaccount": "0123", "statusdesc": "0123, 1234"}
    answer = await heard(json.dumps({"refid": "R1", **told}).encode(), "application/json")
    assert json.loads(answer.body) == told
    assert answer.message is not None
    assert answer.message.refid == "R1"
    assert {name: getattr(answer.message, name) for name in told} == told


async def test_an_answer_that_repeats_nothing_is_left_alone() -> None:
    """The guide's own answer arrives byte for byte, and means what it says."""
    answer = await heard(APPROVED, "application/json")
    assert answer.body == APPROVED
    assert answer.message is not None
    assert (answer.message.statusid, answer.message.momtransactionid) == ("01", "D6JFZF")


async def test_a_code_that_equals_the_cvv_is_still_a_code() -> None:
    """A cvv of 606 leaves K-Pay's own 606 alone; an unlisted code that equals the cvv is not read."""
    card = request.SavedCard(CARD.token, SecretStr("606"))
    answer = await heard(b'{"reply":"ERROR","success":0,"tid":"E1","retcode":606}', "application/json", card)
    assert answer.message is not None
    assert (answer.message.retcode, answer.message.tid) == ("606", "E1")
    other = request.SavedCard(CARD.token, SecretStr("682"))
    answer = await heard(b'{"refid":"R1","statusid":"682","tid":"E1"}', "application/json", other)
    assert answer.message is not None
    assert (answer.message.statusid, json.loads(answer.body)) == ("***", {"statusid": "***", "tid": "E1"})


async def test_a_pattern_in_a_token_is_only_text() -> None:
    """A token of characters that mean something in a pattern is found as it stands, and nothing else is."""
    card = request.SavedCard(SecretStr(".*(x|"), CARD.cvv)
    answer = await heard(b'{"statusdesc":".*(x|, no","tid":"A1"}', "application/json", card)
    assert json.loads(answer.body) == {"statusdesc": "***, no", "tid": "A1"}


CARD_FOR_AN_ID = (
    *({"tid": CVV}, {"momtransactionid": TOKEN}, {"payaccount": CVV}),
    *({"tid": f"X-{TOKEN}"}, {"payaccount": f"{TOKEN}/VISA"}, {"payaccount": f"card 4111, {CVV}"}),
)


@pytest.mark.parametrize("told", CARD_FOR_AN_ID, ids=str)
async def test_an_id_that_is_the_card_is_none(told: dict[str, str]) -> None:
    """Where an id is the cvv, or holds the token, no id was said; nor an account that holds the cvv."""
    answer = await heard(json.dumps({"refid": "R1", "retcode": 0, **told}).encode(), "application/json")
    assert answer.message is not None
    assert {name: getattr(answer.message, name) for name in told} == dict.fromkeys(told)


@pytest.mark.parametrize("room", [len(TOKEN) - 1, 5, 2])
async def test_fault_53_a_token_that_is_cut_is_blotted_out(room: int) -> None:
    """Words that were cut within the token or the cvv keep no part of them."""
    for secret in (TOKEN, CVV):
        cut = min(room, len(secret) - 1)
        answer = await heard(json.dumps({"statusdesc": "x" * (MAX_VALUE - cut) + secret}).encode(), "application/json")
        assert answer.message is not None
        assert answer.message.statusdesc == "x" * (MAX_VALUE - max(len(TOKEN), len(CVV)))
        assert secret[:cut].encode() not in answer.body


@pytest.mark.parametrize("room", [1, 5, len(TOKEN)])
async def test_fault_53_a_token_just_before_the_cut_is_blotted_out(room: int) -> None:
    """A whole token near the end of words that were cut leaves no beginning of it."""
    words = "x" * (MAX_VALUE - len(TOKEN) - room) + TOKEN + "y" * (room + 9)
    answer = await heard(json.dumps({"statusdesc": words}).encode(), "application/json")
    assert answer.message is not None
    assert answer.message.statusdesc is not None
    assert set(answer.message.statusdesc) <= set("xy*")


@pytest.mark.parametrize(("cvv", "said"), [("012", '"cvv":12'), ("007", '"statusdesc":"cvv 7?"'), ("0012", '"x":[12]')])
async def test_fault_53_a_cvv_as_a_number_is_blotted_out(cvv: str, said: str) -> None:
    """A cvv that is repeated as a number, without the zeros before it, is taken out, too."""
    card = request.SavedCard(CARD.token, SecretStr(cvv))
    answer = await heard(f'{{"tid":"A1",{said}}}'.encode(), "application/json", card)
    assert answer.content_type == UNDERSTOOD
    assert cvv.lstrip("0").encode() not in answer.body.replace(b"A1", b"")


async def test_utf_16_and_a_content_type_repeat_nothing() -> None:
    """An answer in UTF-16, and one that repeats the cvv in its content type, are no way round."""
    answer = await heard(json.dumps({"statusdesc": f"cvv {CVV}"}).encode("utf-16"), "application/json")
    assert (answer.message is not None and answer.message.statusdesc, answer.content_type) == ("cvv ***", UNDERSTOOD)
    answer = await heard(b"<p>", f"text/html; cvv={CVV}")
    assert (answer.content_type, answer.body) == (UNDERSTOOD, b"{}")
