"""Payments by saved card: sent once, never again whatever happens, and neither token nor cvv told to anybody."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from app.dev.laptop import free_port
from app.kpay.discreet import UNDERSTOOD
from tests.conftest import QUICK
from tests.liar import NOT_FOUND, Liar, Lie, lie, lying
from tests.proxy import Direction, Fault, Proxy, running_proxy
from tests.receiver import run_receiver
from tests.service.test_bad_input import fields, refused
from tests.service.test_idempotency import ask, conflict, parallel
from tests.service.test_tokens import silence
from tests.support import (
    Json,
    Service,
    Simulator,
    eventually,
    metric,
    new_refid,
    payment,
    query,
    run_command,
    run_service,
)

NewDatabase = Callable[[], str]

TOKEN, CVV = "2C6AA59B-166D-442C", "0473"
OTHER_TOKEN = "7dc23f6e-00ae-473a-bb9f-b95b8d79bc85"
CALLS = 'kpayd_gateway_calls_total{{action="{}",outcome="{}"}}'


def by_card(**changes: object) -> Json:
    """Return a good request for a payment by saved card."""
    return payment() | {"pmethod": "cc", "refid": new_refid(), "token": TOKEN, "cvv": CVV} | changes


def outcome(refid: str, statusid: str = "01", /, **changes: object) -> Json:
    """Return K-Pay's word on how a payment ended: the guide's members, and a tid and receipt of its own."""
    paid = statusid == "01"
    said = {"tid": f"E{refid}", "refid": refid, "momtransactionid": f"D{refid}" if paid else "", "statusid": statusid}
    return said | {"statusdesc": "APPROVED" if paid else "DECLINED", "comtime": "2020-09-14 22:46:11"} | changes


def approved(refid: str) -> Lie:
    """Return the guide's answer to a payment by token: no retcode, a brace too many."""
    return Lie(json.dumps(outcome(refid)).encode() + b"}")


@dataclass
class Sent:
    """Notes what passes to K-Pay: the bodies of all payments by token."""

    bodies: list[Json] = field(default_factory=list)

    def __call__(self, direction: Direction, chunk: bytes) -> None:
        """Look at one chunk."""
        if direction == "request" and b'"tokenpay"' in chunk:
            self.bodies.append(json.loads(chunk[chunk.index(b"{") :]))


@dataclass(frozen=True)
class Till:
    """A service, a K-Pay that says what it is told, and the proxy between the two."""

    service: Service
    liar: Liar
    proxy: Proxy

    def pay(
        self, refid: str, said: Lie | None = None, truth: Lie | None = None, *, silent: bool = False, **changes: object
    ) -> httpx2.Response:
        """Pay by card; K-Pay answers as `said`, or never if `silent`, and as `truth` when it is asked later."""
        self.liar.lies |= {} if silent else {("tokenpay", refid): said or approved(refid)}
        self.liar.lies |= {("checkstatus", refid): truth or lie(**outcome(refid))}
        return self.service.http.post("/v1/payments", json=by_card(refid=refid, **changes))

    def sent(self, refid: str) -> int:
        """Return how often K-Pay was sent a payment under this refid, by token or otherwise."""
        return sum(asked == refid and action in {"pay", "tokenpay"} for action, asked in self.liar.heard)


@pytest.fixture(scope="module")
def shared(new_database: NewDatabase, simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """Run a service before a K-Pay of its own."""
    with silence() as silent, lying(silent) as liar, running_proxy(("127.0.0.1", liar.port)) as proxy:
        more = QUICK | {"GATEWAY_URL": f"{proxy.url}/", "WEBHOOK_HOSTS": "127.0.0.1", "LOG_LEVEL": "DEBUG"}
        with run_service(tmp_path_factory.mktemp("tokenpay"), new_database(), simulator, more) as service:
            yield Till(service, liar, proxy)


@pytest.fixture
def till(shared: Till) -> Iterator[Till]:
    """Give the till; afterwards neither token nor cvv is in the log."""
    yield shared
    shared.proxy.set(Fault.NONE)
    shared.proxy.watch = None
    assert [secret for secret in (TOKEN, OTHER_TOKEN, f'"{CVV}"') if secret in shared.service.process.words] == []


def created(answer: httpx2.Response, status: str) -> Json:
    """Return the payment of an answer that must be a 201 with this status."""
    body: Json = answer.json()
    assert (answer.status_code, body.get("status")) == (201, status), answer.text
    return body


def test_approved(till: Till) -> None:
    """The guide's answer is a success at once, with its receipt; K-Pay was sent token and cvv, once, as `cc`."""
    refid, sent = new_refid(), Sent()
    till.proxy.watch = sent
    paid = created(till.pay(refid), "succeeded")
    told = {"momtransactionid": f"D{refid}", "tid": f"E{refid}", "statusid": "01", "statusdesc": "APPROVED"}
    assert {name: paid[name] for name in told} == told
    assert (paid["failure"], paid["needs_review"], paid["pmethod"], paid["bankid"]) == (None, False, "cc", "000")
    (body,) = sent.bodies
    asked = {"action": "tokenpay", "token": TOKEN, "cvv": CVV, "pmethod": "cc", "refid": refid}
    assert {name: body[name] for name in asked} == asked
    assert "bankid" not in body


def test_declined(till: Till) -> None:
    """`statusid` 02 is a failure at once, in K-Pay's words."""
    refid = new_refid()
    declined = lie(**outcome(refid, "02"))
    failed = created(till.pay(refid, declined, declined), "failed")
    assert (failed["failure"]["code"], failed["failure"]["detail"]) == ("declined", "DECLINED")
    assert (failed["momtransactionid"], till.sent(refid)) == (None, 1)


def test_refused(till: Till) -> None:
    """A refusal before anything was begun is a failure with K-Pay's code."""
    refid = new_refid()
    failed = created(till.pay(refid, lie(reply="Retailer not enabled", success=0, retcode=605)), "failed")
    assert (failed["failure"]["code"], failed["failure"]["retcode"]) == ("misconfigured", "605")


UNKNOWN: dict[str, Callable[[str], Lie] | None] = {
    "reset": None,
    "silence": None,
    "html-500": lambda refid: Lie(
        f"<html>{refid} {TOKEN} {CVV}</html>".encode(), 500, (("Content-Type", "text/html"),)
    ),
    "refusal-on-500": lambda refid: lie(500, refid=refid, reply="Error processing", retcode=606, success=0),
    "cut-json": lambda refid: Lie(json.dumps(outcome(refid)).encode()[:-20]),
    "another-refid": lambda refid: lie(**outcome(f"{refid}X")),
    "no-refid": lambda refid: lie(**outcome(refid, refid="")),
    "nothing": lambda _: Lie(b""),
    "used-refid": lambda refid: lie(refid=refid, reply="Used ref id", retcode=608, success=0),
}


@pytest.mark.parametrize("statusid", ["01", "02"])
@pytest.mark.parametrize("how", UNKNOWN)
def test_an_unknown_outcome_is_asked_about_and_never_sent_again(till: Till, how: str, statusid: str) -> None:
    """Whatever hides the outcome, the payment is `created`, asked about by checkstatus, and ends as K-Pay says."""
    refid, said = new_refid(), UNKNOWN[how]
    truth = lie(**outcome(refid, statusid))
    if how == "reset":
        till.proxy.set(Fault.LOSE_ANSWER)
    not_yet = lie(**NOT_FOUND)  # or a check might tell how it ended before this answer comes
    answer = till.pay(refid, said(refid) if said is not None else truth, not_yet, silent=how == "silence")
    till.proxy.set(Fault.NONE)
    open_ = created(answer, "created")
    assert (open_["failure"], open_["final_at"]) == (None, None)
    again = till.service.http.post("/v1/payments", json=by_card(refid=refid))
    assert (again.status_code, again.json()["refid"]) == (200, refid)
    till.liar.lies["checkstatus", refid] = truth
    end = till.service.read(refid, wait=20)
    assert end["status"] == ("succeeded" if statusid == "01" else "failed")
    assert end["review_reasons"] == (["duplicate_refid"] if how == "used-refid" else [])
    assert (till.sent(refid), till.liar.asked(refid) >= 1) == (1, True)


def test_not_found_is_believed_after_the_grace(till: Till) -> None:
    """611 about a request in doubt is believed after `UNKNOWN_GRACE` only; then it is `not_received`."""
    refid = new_refid()
    created(till.pay(refid, Lie(b"<html>", 500), lie(**NOT_FOUND)), "created")
    assert till.service.http.post(f"/v1/payments/{refid}/check").json()["status"] == "created"
    end = till.service.read(refid, wait=20)
    assert (end["status"], end["failure"]["code"]) == ("failed", "not_received")
    grace = "SELECT extract(epoch FROM final_at - doubt_from)::float AS seconds FROM payments WHERE refid = $1"
    assert query(till.service.database_url, grace, refid)[0]["seconds"] >= float(QUICK["UNKNOWN_GRACE"])
    assert till.sent(refid) == 1


def test_a_refused_connection_is_one_attempt(till: Till) -> None:
    """Where nobody listens the payment is `failed` after one attempt, and stays so: its cvv was held for one only."""
    refid, tried = new_refid(), CALLS.format("tokenpay", "not_sent")
    before = metric(till.service, tried)
    till.proxy.set(Fault.REFUSE)
    failed = created(till.pay(refid, truth=lie(**NOT_FOUND)), "failed")
    assert failed["failure"]["code"] == "gateway_unreachable"
    assert metric(till.service, tried) - before == 1
    till.proxy.set(Fault.NONE)
    again = till.service.http.post("/v1/payments", json=by_card(refid=refid))
    assert (again.status_code, again.json()["status"]) == (200, "failed")
    assert (till.sent(refid), metric(till.service, tried) - before) == (0, 1)


def test_fault_34_a_kill_while_kpay_is_silent(tmp_path: Path, new_database: NewDatabase, simulator: Simulator) -> None:
    """Killed while K-Pay is silent, the service asks about the payment after its restart, and sends nothing again."""
    port, database = free_port(), new_database()
    paid, lost = new_refid(), new_refid()
    with silence() as silent, lying(silent) as liar:
        liar.lies |= {("checkstatus", paid): lie(**outcome(paid)), ("checkstatus", lost): lie(**NOT_FOUND)}
        way = {"GATEWAY_URL": f"http://127.0.0.1:{liar.port}/"}
        with run_service(tmp_path, database, simulator, QUICK | way | {"GATEWAY_TIMEOUT": "8"}, port=port) as service:
            for refid in (paid, lost):
                threading.Thread(target=_ask_and_be_cut, args=(service, by_card(refid=refid)), daemon=True).start()
            eventually(lambda: {("tokenpay", paid), ("tokenpay", lost)} <= set(liar.heard))
            service.process.kill()
            key = service.key
        quick = QUICK | way | {"GATEWAY_TIMEOUT": "1", "UNKNOWN_GRACE": "1"}
        with run_service(tmp_path, database, simulator, quick, port=port) as again, again.client(key) as http:
            same = http.post("/v1/payments", json=by_card(refid=paid))
            assert (same.status_code, same.json()["refid"]) == (200, paid)
            assert eventually(lambda: http.get(f"/v1/payments/{paid}?wait=5").json()["status"] == "succeeded")
            end = eventually(lambda: (now := http.get(f"/v1/payments/{lost}").json())["failure"] and now, seconds=40)
            assert end["failure"]["code"] == "not_received"
        assert Counter(liar.heard)["tokenpay", paid] == Counter(liar.heard)["tokenpay", lost] == 1
        assert {action for action, _ in liar.heard} == {"tokenpay", "checkstatus"}


def _ask_and_be_cut(service: Service, body: Json) -> None:
    with service.client(service.key) as http, pytest.raises(httpx2.TransportError):
        http.post("/v1/payments", json=body)


@pytest.mark.parametrize("name", ["refid", "key", "both"])
def test_the_same_request_is_the_same_payment(till: Till, name: str) -> None:
    """A repetition, with another cvv too, is 200 with the first payment; with another token it is 409."""
    asked, key = by_card(), None if name == "refid" else new_refid()
    if name == "key":
        del asked["refid"]
    till.liar.lies["tokenpay", "*"] = lie(reply="Retailer not enabled", success=0, retcode=605)
    first = created(ask(till.service.http, asked, key), "failed")
    for again in (asked, asked | {"cvv": "999"}, asked | {"cvv": 123}):
        answer = ask(till.service.http, again, key)
        assert (answer.status_code, answer.json()) == (200, first)
    code = "refid_used" if name != "key" else "idempotency_key_reused"
    for other in (asked | {"token": OTHER_TOKEN}, asked | {"token": TOKEN.lower()}, asked | {"amount": 1}):
        conflict(ask(till.service.http, other, key), code, first["refid"])
    assert till.sent(first["refid"]) == 1
    del till.liar.lies["tokenpay", "*"]


@pytest.mark.parametrize("first", ["pay", "tokenpay"])
def test_a_card_payment_and_one_by_saved_card_are_two(till: Till, first: str) -> None:
    """The same refid by the payment page and by a saved card is 409, whichever came first; one request is sent."""
    by_token = by_card()
    by_page = {name: value for name, value in by_token.items() if name not in ("token", "cvv")}
    refid = by_token["refid"]
    till.liar.lies |= {(action, refid): lie(**outcome(refid)) for action in ("pay", "tokenpay", "checkstatus")}
    order = (by_page, by_token) if first == "pay" else (by_token, by_page)
    created(ask(till.service.http, order[0]), "succeeded")
    conflict(ask(till.service.http, order[1]), "refid_used", refid)
    assert [action for action, asked in till.liar.heard if asked == refid and action != "checkstatus"] == [first]


@pytest.mark.parametrize("named", ["refid", "key"])
def test_16_at_once(till: Till, named: str) -> None:
    """Of 16 at the same moment, each with another cvv, one is sent: 201 for one, 200 for the others."""
    refid = new_refid()
    till.liar.lies["tokenpay", "*"] = lie(reply="Retailer not enabled", success=0, retcode=605)
    asked = by_card() | {"refid": refid if named == "refid" else None}
    headers = {"idempotency_key": new_refid()} if named == "key" else {}
    before = Counter(action for action, _ in till.liar.heard)["tokenpay"]
    said = parallel(till.service, [asked | {"cvv": f"{number:03}"} for number in range(100, 116)], **headers)
    assert Counter(each.status for each in said) == {201: 1, 200: 15}
    (one,) = {each.json()["refid"] for each in said}
    assert till.sent(one) == Counter(action for action, _ in till.liar.heard)["tokenpay"] - before == 1
    del till.liar.lies["tokenpay", "*"]


SECRET = "98761234"
BAD: dict[str, tuple[Json, list[str]]] = {
    "token-without-cvv": ({"cvv": None, "token": f"t{SECRET}"}, ["cvv"]),
    "cvv-without-token": ({"token": None, "cvv": "9876"}, ["cvv"]),
    "token-with-momo": ({"pmethod": "momo", "token": f"t{SECRET}"}, ["token"]),
    "token-as-refid": ({"refid": TOKEN}, ["token"]),
    "token-in-details": ({"details": f"by {TOKEN}"}, ["token"]),
    "token-in-metadata": ({"metadata": {"card": f"<{TOKEN}>"}}, ["token"]),
    "token-with-bank": ({"pmethod": "bank", "bankid": "040", "token": f"t{SECRET}"}, ["token"]),
    **{
        f"cvv-{name}": ({"cvv": value}, ["cvv"])
        for name, value in {
            "2-digits": "98",
            "5-digits": "98761",
            "letters": "x98761234",
            "digit-and-letter": "98x",
            "spaces": " 987",
            "line-break": "987\n",
            "arabic-digits": "\u0661\u0662\u0663",
            "empty": "",
            "float": 987.0,
            "bool": True,
            "int-2-digits": 98,
            "int-5-digits": 98761,
            "int-negative": -987,
            "list": ["987"],
            "object": {SECRET: SECRET},
        }.items()
    },
    **{
        f"token-{name}": ({"token": value}, ["token"])
        for name, value in {
            "spaces": f"t {SECRET}",
            "201-characters": SECRET + "x" * 193,
            "empty": "",
            "line-break": f"{SECRET}\n",
            "nul": f"{SECRET}\0",
            "umlaut": f"{SECRET}\xe4",
            "int": int(SECRET),
            "bool": True,
            "list": [SECRET],
            "object": {SECRET: SECRET},
        }.items()
    },
}
"""What is wrong, and the fields that are named for it."""


@pytest.mark.parametrize("case", BAD)
def test_a_saved_card_that_is_wrong(till: Till, case: str) -> None:
    """A token or cvv that cannot be one is 422 under its name; its value is not repeated, and nothing recorded."""
    changes, named = BAD[case]
    asked = by_card(**changes)
    answer = till.service.http.post("/v1/payments", json=asked)
    assert fields(refused(answer)) == named
    for value in ("9876", SECRET, "987", "\u0661", TOKEN, CVV):
        assert value not in answer.text
    assert not query(till.service.database_url, "SELECT refid FROM payments WHERE refid = $1", asked["refid"])
    assert till.sent(asked["refid"]) == 0


@pytest.mark.parametrize(("cvv", "sent"), [(123, "123"), (1234, "1234"), ("007", "007"), ("0000", "0000")])
def test_a_cvv_as_text_or_number(till: Till, cvv: object, sent: str) -> None:
    """Three or four digits are a cvv, as text or as number, and are text on the wire."""
    refid, passed = new_refid(), Sent()
    till.proxy.watch = passed
    created(till.pay(refid, cvv=cvv), "succeeded")
    assert [body["cvv"] for body in passed.bodies] == [sent]


def test_the_longest_token(till: Till) -> None:
    """A token of 200 characters is passed on whole."""
    refid, passed, token = new_refid(), Sent(), "".join(map(chr, range(33, 127))).ljust(200, "x")
    till.proxy.watch = passed
    created(till.pay(refid, token=token), "succeeded")
    assert [body["token"] for body in passed.bodies] == [token]


def members(value: object) -> set[str]:
    """Return the names of all members of a JSON value, however deep."""
    if isinstance(value, dict):
        return set(value) | {name for each in value.values() for name in members(each)}
    return {name for each in value for name in members(each)} if isinstance(value, list) else set()


def test_fault_53_nobody_is_told_of_token_and_cvv(till: Till) -> None:
    """Start, read, list, timeline, feed, stream, webhook and database: none has either, though K-Pay repeats both."""
    service = till.service
    with run_receiver() as receiver:
        made = run_command(service.env, "clients", "add", "told", "--webhook-url", receiver.url, "--json")
        assert made.returncode == 0, made.stderr
        with service.client(json.loads(made.stdout)["key"]) as http:
            refid = new_refid()
            said = outcome(refid, "02", statusdesc=f"cvv {CVV} of {TOKEN} is wrong", cvv=CVV, token=TOKEN)
            till.liar.lies |= {("tokenpay", refid): lie(**said), ("checkstatus", refid): lie(**outcome(refid, "02"))}
            answers = [http.post("/v1/payments", json=by_card(refid=refid))]
            created(answers[0], "failed")
            eventually(lambda: receiver.of(refid))
            paths = (f"payments/{refid}", "payments", f"payments/{refid}/events", "events", "deliveries")
            answers += [http.get(f"/v1/{path}") for path in paths]
            answers += [http.post("/v1/payments", json=by_card(refid=refid))]
            with http.stream("GET", "/v1/events/stream") as stream:
                streamed = next(line for line in stream.iter_lines() if refid in line)
    told = [answer.raise_for_status().text for answer in answers]
    told += [streamed, *(got.body.decode() for got in receiver.got)]
    assert len(told) == 9
    for text in told:
        assert refid in text
        assert TOKEN not in text
        assert CVV not in text.replace(refid, "")
        assert not {"token", "cvv"} & members(json.loads(text[text.index("{") :]))
    assert "cvv *** of *** is wrong" in told[0]
    sql = "SELECT body, content_type FROM bodies WHERE refid = $1 AND source = 'gateway_reply'"
    (row,) = query(service.database_url, sql, refid)
    understood = {"tid": said["tid"], "statusid": "02", "statusdesc": "cvv *** of *** is wrong"}
    assert (json.loads(row["body"]), row["content_type"]) == (understood, UNDERSTOOD)
