"""Saved cards over REST: a page to save one and the list of them; what K-Pay says is passed on and kept nowhere."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import pytest

from app.dev.postgres import binaries
from app.domain import Scope
from tests.conftest import QUICK
from tests.liar import EVERY, Liar, Lie, lie, lying
from tests.proxy import Fault, Proxy, running_proxy
from tests.service.test_bad_input import CANARY, fields, refused
from tests.support import Json, Service, Simulator, query, run_service

NewDatabase = Callable[[], str]

PAYER: Json = {"msisdn": "250788735917", "email": "token.canary@example.rw", "cusname": "KANEZA Canary"}
TOKEN = "7dc23f6e-00ae-473a-bb9f-b95b8d79bc85"
ADDED = Lie(
    b'{"reply":"token generation url saved","url":  \n"https://pay.esicia.com/token/TK31593123161" ,"success":1,'
    b'"authkey":  \n"79j2b4d32jdc9efu2qfhej503" ,"tid":"TK31593123161", "refid":  \n"ABCD1593123162","retcode":0}'
)
LISTED = Lie(
    b'{"reply":[{"cardhash":"555555xxxxxx4444","scheme":"MASTERCARD","token":"7dc23  \nf6e-00ae-473a-bb9f-  \n'
    b'b95b8d79bc85"}, {"cardhash":"424242xxxxxx4242","scheme":"VISA","token":"7dc23f  \n6e-00ae-473a-bb9f-  \n'
    b'b95b8d79bc85"}], "success":1,"authkey":"ujrkm01p4anmpci3ctne8k37p2","tid":0,"r  \nefid":"ABCD1593510281",'
    b'"retcode":0}'
)
"""The guide's own answers, as printed."""
CALLS = ("addtoken", "tokenlist")


@dataclass(frozen=True)
class Desk:
    """A service, a K-Pay that says what it is told, and the proxy between the two."""

    service: Service
    liar: Liar
    proxy: Proxy
    other_key: str
    """One with every scope but `tokens:write`."""
    token_key: str
    """One with that scope alone."""

    def says(self, action: str, said: Lie) -> None:
        """Let K-Pay answer every call of one action so."""
        self.liar.lies[action, EVERY] = said

    def ask(self, action: str, http: httpx2.Client | None = None) -> httpx2.Response:
        """Ask for a page or for the list, with all that it takes."""
        http = http or self.service.http
        if action == "addtoken":
            return http.post("/v1/tokens", json=PAYER)
        return http.get("/v1/tokens", params={"msisdn": PAYER["msisdn"]})

    def dump(self) -> str:
        """Return all rows of the database as text, less the API clients', who have a note of when they came last."""
        command = [str(binaries() / "pg_dump"), "--data-only", "--exclude-table-data", "clients", "--dbname"]
        command.append(self.service.database_url)
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        lines = done.stdout.splitlines()
        return "\n".join(line for line in lines if "restrict" not in line)  # a word that is new in every dump


@contextmanager
def silence() -> Iterator[str]:
    """Yield the URL of a server that takes connections and never says a word: what a `Liar` without a lie is."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture(scope="module")
def shared(new_database: NewDatabase, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Run a service before a K-Pay of its own."""
    with silence() as silent, lying(silent) as liar, running_proxy(("127.0.0.1", liar.port)) as proxy:
        more = QUICK | {"GATEWAY_URL": f"{proxy.url}/"}
        with run_service(tmp_path_factory.mktemp("tokens"), new_database(), simulator, more) as service:
            others = [scope for scope in Scope if scope is not Scope.TOKENS_WRITE]
            keys = service.new_key("no-tokens", *others), service.new_key("tokens-only", Scope.TOKENS_WRITE)
            yield Desk(service, liar, proxy, *keys)


@pytest.fixture
def desk(shared: Desk) -> Iterator[Desk]:
    """Give the desk with a K-Pay that answers as its guide does, and see that nothing of all was written down."""
    shared.says("addtoken", ADDED)
    shared.says("tokenlist", LISTED)
    shared.liar.heard.clear()
    before = shared.dump()
    yield shared
    shared.proxy.set(Fault.NONE)
    assert shared.dump() == before
    words = shared.service.process.words
    assert [each for each in (TOKEN, "7dc23", *PAYER.values()) if each in words] == []


def problem(answer: httpx2.Response, status: int, code: str) -> Json:
    """Return the problem of an answer that must be one."""
    body: Json = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert answer.headers["content-type"] == "application/problem+json"
    return body


def test_a_page_to_save_a_card(desk: Desk) -> None:
    """201 with K-Pay's page and tid and the refid that it was asked under; asked twice, these are two pages."""
    refids = set()
    for _ in range(2):
        answer = desk.ask("addtoken")
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        body = answer.json()
        refids.add(body.pop("refid"))
        assert body == {"tid": "TK31593123161", "url": "https://pay.esicia.com/token/TK31593123161"}
    assert {("addtoken", refid) for refid in refids} == set(desk.liar.heard)
    assert len(refids) == 2


def test_the_list_of_saved_cards(desk: Desk) -> None:
    """200 with the guide's two cards and their one token, whole; however the number is written."""
    expected = [
        {"cardhash": "555555xxxxxx4444", "scheme": "MASTERCARD", "token": TOKEN},
        {"cardhash": "424242xxxxxx4242", "scheme": "VISA", "token": TOKEN},
    ]
    for number in ("250788735917", "+250 788 735 917", "0788735917"):
        answer = desk.service.http.get("/v1/tokens", params={"msisdn": number})
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert answer.json() == {"items": expected}
    assert [action for action, _ in desk.liar.heard] == ["tokenlist"] * 3


def test_a_payer_without_saved_cards(desk: Desk) -> None:
    """An empty list is 200, and not an error."""
    desk.says("tokenlist", lie(reply=[], success=1, tid=0, retcode=0))
    assert desk.ask("tokenlist").json() == {"items": []}


@pytest.mark.parametrize("action", CALLS)
def test_the_scope_is_needed(desk: Desk, action: str) -> None:
    """A key with every scope but `tokens:write` is 403, one with that alone is enough; without a key it is 401."""
    with desk.service.client(desk.other_key) as without, desk.service.client(None) as nobody:
        assert "tokens:write" in problem(desk.ask(action, without), 403, "forbidden")["detail"]
        problem(desk.ask(action, nobody), 401, "unauthorized")
    assert desk.liar.heard == []
    with desk.service.client(desk.token_key) as http:
        assert desk.ask(action, http).is_success


WRONG: dict[str, list[object]] = {
    "msisdn": ["", CANARY, "0788", "2507883\n12934", "25078831293x", 250788312934, None, [], {}, "2" * 30],
    "email": ["", CANARY, f"{CANARY}@", "a b@example.rw", None, 5, [], f"{'x' * 250}@example.rw"],
    "cusname": ["", "  ", "x" * 101, f"{CANARY}\0", f"{CANARY}\nx", None, 5, [], {CANARY: 1}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_member_that_is_wrong(desk: Desk, name: str, value: object) -> None:
    """Each member that is wrong is 422 under its name, nothing is repeated, and K-Pay hears nothing."""
    assert fields(refused(desk.service.http.post("/v1/tokens", json=PAYER | {name: value}))) == [name]
    assert desk.liar.heard == []


def test_members_that_are_missing_or_unknown(desk: Desk) -> None:
    """What is missing and what nobody knows is named, all at once."""
    post = desk.service.http.post
    assert fields(refused(post("/v1/tokens", json={}))) == ["cusname", "email", "msisdn"]
    for name in PAYER:
        rest = {other: value for other, value in PAYER.items() if other != name}
        assert fields(refused(post("/v1/tokens", json=rest))) == [name]
    unknown = dict.fromkeys(("refid", "cname", "token", "cvv", "action"), CANARY)
    assert fields(refused(post("/v1/tokens", json=PAYER | unknown))) == sorted(unknown)
    assert fields(refused(post("/v1/tokens", content=f'["{CANARY}"'))) == ["body"]
    assert desk.liar.heard == []


def test_parameters_that_are_wrong_missing_or_unknown(desk: Desk) -> None:
    """The list wants one number, and takes no parameter that it does not know."""
    get, number = desk.service.http.get, PAYER["msisdn"]
    assert fields(refused(get("/v1/tokens"))) == ["msisdn"]
    for wrong in ("", CANARY, "0788", "2507883\n12934", f"{number}x"):
        assert fields(refused(get("/v1/tokens", params={"msisdn": wrong}))) == ["msisdn"]
    for name in ("token", "cvv", "refid", "limit", "cursor", "email"):
        assert fields(refused(get("/v1/tokens", params={"msisdn": number, name: CANARY}))) == [name]
    assert desk.liar.heard == []


@pytest.mark.parametrize("action", CALLS)
@pytest.mark.parametrize("retcode", ["600", "602", "603", "605", "606", "608", "611", "777"])
def test_kpay_refuses(desk: Desk, action: str, retcode: str) -> None:
    """A refusal is 502 with K-Pay's words and code, though a page or cards stand beside it."""
    desk.says(action, lie(reply="Location / IP", url="https://pay.esicia.com/t", success=0, retcode=int(retcode)))
    told = problem(desk.ask(action), 502, "gateway_refused")
    assert (told["retcode"], told["detail"]) == (retcode, "Location / IP")
    assert "pay.esicia.com" not in str(told)


UNUSABLE = {
    "html": Lie(b"<html>7dc23</html>", 502, (("Content-Type", "text/html"),)),
    "cut": Lie(LISTED.body[:150]),
    "nothing": Lie(b""),
    "no-page-no-list": lie(reply="here you are", success=1, retcode=0),
    "success-0": lie(reply="7dc23 no", success=0),
    "twice": Lie(b'{"url":"https://pay.esicia.com/a","url":"https://pay.esicia.com/b","reply":[],"reply":"","retcode":0,'
                 b'"retcode":602}'),
}  # fmt: skip


@pytest.mark.parametrize("action", CALLS)
@pytest.mark.parametrize("said", UNUSABLE.values(), ids=UNUSABLE)
def test_kpay_says_nothing_usable(desk: Desk, action: str, said: Lie) -> None:
    """An answer that cannot be read or does not hold what was asked for is 502 without a code."""
    desk.says(action, said)
    assert "retcode" not in problem(desk.ask(action), 502, "gateway_refused")


@pytest.mark.parametrize("action", CALLS)
def test_kpay_is_down(desk: Desk, action: str) -> None:
    """Where nobody listens it is 503, and when to try again is told."""
    desk.proxy.set(Fault.REFUSE)
    answer = desk.ask(action)
    problem(answer, 503, "gateway_unreachable")
    assert int(answer.headers["retry-after"]) >= 1
    desk.proxy.set(Fault.NONE)
    assert desk.ask(action).is_success


@pytest.mark.parametrize("action", CALLS)
@pytest.mark.parametrize("how", ["silent", "reset", "cut"])
def test_kpay_does_not_answer(desk: Desk, action: str, how: str) -> None:
    """Silence, a reset and half an answer are 504: K-Pay was asked once, and asking again does no harm."""
    if how == "silent":
        del desk.liar.lies[action, EVERY]
    else:
        desk.proxy.set(Fault.LOSE_ANSWER if how == "reset" else Fault.TRUNCATE, 120)
    began = time.monotonic()
    problem(desk.ask(action), 504, "gateway_timeout")
    assert how != "silent" or time.monotonic() - began > 1.5
    assert len(desk.liar.heard) == 1
    desk.proxy.set(Fault.NONE)
    desk.says(action, {"addtoken": ADDED, "tokenlist": LISTED}[action])
    assert desk.ask(action).is_success


FOREIGN = (
    "https://evil.example/token/TK1",
    "http://pay.esicia.com/token/TK1",
    "//evil.example/token/TK1",
    "https://pay.esicia.com.evil.example/",
    "https://pay.esicia.com@evil.example/",
    "https://evil.example\\@pay.esicia.com/",
    "https://evil.example#@pay.esicia.com/",
    "javascript:alert(document.domain)//evil.example",
)


@pytest.mark.parametrize("url", FOREIGN)
def test_fault_33_a_token_url_on_a_foreign_host_is_not_told(desk: Desk, url: str) -> None:
    """A page to save a card on a host that is not allowed is 502, and neither the answer nor the log names it."""
    desk.says("addtoken", lie(reply="saved", url=url, success=1, tid="TK1", retcode=0))
    answer = desk.ask("addtoken")
    problem(answer, 502, "gateway_refused")
    for secret in (url, "evil.example", "TK1"):
        assert secret not in answer.text
    assert "evil.example" not in desk.service.process.words


def test_a_token_url_on_an_allowed_host(desk: Desk) -> None:
    """Both of K-Pay's hosts may be named."""
    for url in ("https://pay.esicia.rw/token/TK1", "https://pay.esicia.com/token/TK1?x=1"):
        desk.says("addtoken", lie(reply="saved", url=url, success=1, tid="TK1", retcode=0))
        assert desk.ask("addtoken").json()["url"] == url


def test_the_comparison_of_dumps_sees_a_change(shared: Desk) -> None:
    """A row that is new makes another dump: what the other tests compare is not blind."""
    before = shared.dump()
    query(shared.service.database_url, "INSERT INTO claims VALUES ('x', 'orderid', 'seen-in-the-dump', 'r')")
    assert "seen-in-the-dump" in shared.dump()
    assert shared.dump() != before
