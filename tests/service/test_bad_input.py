"""Requests that cannot be payments: each fault is named, nothing is repeated, recorded or sent to K-Pay."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support import Json, Service, Simulator, new_refid, payment, query

CANARY = "CANARY7f3a"
JSON = {"Content-Type": "application/json"}
PREFIX = "bad-"
TEXTS = ("pmethod", "msisdn", "email", "details", "cname", "redirecturl")
REQUIRED = ("amount", *TEXTS)

NO_TEXT = {
    "null": b"null",
    "number": b"5",
    "true": b"true",
    "list": b'["CANARY7f3a"]',
    "object": b'{"CANARY7f3a": 1}',
    "empty": b'""',
    "blank": b'"   "',
    "nul": b'"CANARY7f3a\\u0000"',
    "escape": b'"CANARY7f3a\\u001b[2J"',
    "line_break": b'"CANARY7f3a\\nx"',
    "surrogate": b'"CANARY7f3a\\ud800"',
    "raw_surrogate": b'"CANARY7f3a\xed\xa0\x80"',
    "too_long": b'"CANARY7f3a' + b"x" * 2_100 + b'"',
}
NO_AMOUNT = {
    **{str(number): str(number).encode() for number in (0, -1, 10**30, 10**12 + 1)},
    **{
        text: text.encode() for text in ("1.0", '"5"', "true", "1e3", "NaN", "Infinity", "null", "[]", "{}", "1e999999")
    },
}
NO_OPTION = {
    "refid": [b'""', b'"a b"', b'"a/b"', b'"a.b"', b'"a\\n"', b'"\xc3\xa9"', b'"%s"' % (b"x" * 41), b"5", b"[]"],
    "currency": [b"null", b'"EUR"', b'"rwf"', b'""', b"5", b'"CANARY7f3a"'],
    "cnumber": [b'""', b"5", b'"%s"' % (b"x" * 101), b'"a\\u0000"', b'"\\udfff"'],
    "orderid": [b'""', b"5", b'"%s"' % (b"x" * 65), b'"a\\u0000"', b'"\\udfff"'],
    "logourl": [b'""', b"5", b'"http://shop.example.rw/CANARY7f3a"', b'"javascript:alert(1)"', b'"//x"'],
    "bankid": [b'""', b"63510", b'"CANARY7f3a"', b"[]", b"{}", b'"63510\\u0000"', b'"\\ud800"'],
    "metadata": [b"null", b"[]", b'"x"', b"5", b'{"%s": "v"}' % b",".join(b"" for _ in range(1)), b'{"a": 1}'],
}
NO_URL = ["http://shop.example.rw", "ftp://x.rw", "javascript:alert(1)", "data:text/html,x", "//x.rw", "/done", "x.rw"]
NO_URL += ["https://", "https:///x", "https://user:pw@x.rw", "https://x.rw:99999", "https://a b", "https://x.rw\\@y.rw"]


@pytest.fixture(scope="module")
def careless(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of an API client that never makes a good request."""
    with service.client(service.new_key("careless", "payments:write")) as http:
        yield http


def with_member(name: str, raw: bytes) -> bytes:
    """Return a good request in which one member is these bytes."""
    rest = payment(refid=f"{PREFIX}{new_refid()}") | {name: None}
    del rest[name]
    return json.dumps(rest).encode()[:-1] + b', "%s": %s}' % (name.encode(), raw)


def refused(answer: httpx2.Response, *statuses: int) -> Json:
    """Return the problem of an answer that must be one, well formed, and without anything that was sent."""
    assert answer.status_code in (statuses or (422,)), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: Json = answer.json()
    assert problem["status"] == answer.status_code
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail", "code"))
    assert CANARY not in answer.text
    return problem


def fields(problem: Json) -> list[str]:
    """Return the names of the fields at fault."""
    assert all(set(error) == {"field", "detail"} and error["detail"] for error in problem["errors"])
    return sorted(error["field"] for error in problem["errors"])


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_member_that_is_missing(name: str, careless: httpx2.Client) -> None:
    """The answer names just the member that is missing."""
    assert fields(
        refused(careless.post("/v1/payments", json={key: value for key, value in payment().items() if key != name}))
    ) == [name]


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_none(name: str, kind: str, careless: httpx2.Client) -> None:
    """Null, another type, empty, too long, control characters and lone surrogates are refused, one by one."""
    answer = careless.post("/v1/payments", content=with_member(name, NO_TEXT[kind]), headers=JSON)
    assert fields(refused(answer)) == [name]


@pytest.mark.parametrize("kind", NO_AMOUNT)
def test_an_amount_that_is_none(kind: str, careless: httpx2.Client) -> None:
    """Only a whole number above 0, written as one, is an amount."""
    answer = careless.post("/v1/payments", content=with_member("amount", NO_AMOUNT[kind]), headers=JSON)
    assert fields(refused(answer)) == ["amount"]


@pytest.mark.parametrize(("name", "raw"), [(name, raw) for name, raws in NO_OPTION.items() for raw in raws])
def test_an_optional_member_that_is_wrong(name: str, raw: bytes, careless: httpx2.Client) -> None:
    """What may be left out may not be wrong."""
    named = fields(refused(careless.post("/v1/payments", content=with_member(name, raw), headers=JSON)))
    assert {each.split(".")[0] for each in named} == {name}


@pytest.mark.parametrize("url", NO_URL)
def test_a_redirecturl_that_is_no_https_url(url: str, careless: httpx2.Client) -> None:
    """The payer's browser is sent to https only, and to no URL that hides where it leads."""
    assert fields(refused(careless.post("/v1/payments", json=payment(redirecturl=url)))) == ["redirecturl"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"": "v"},
        {"k" * 41: "v"},
        {"k": "v" * 501},
        {f"key{number}": "v" for number in range(51)},
        {"k": "\0"},
        {"k\0": "v"},
        {"k": {"nested": "v"}},
        {"k": None},
    ],
    ids=["empty_key", "long_key", "long_value", "too_many", "nul", "nul_in_key", "nested", "null"],
)
def test_metadata_beyond_its_limits(metadata: Json, careless: httpx2.Client) -> None:
    """Metadata that is no small object of strings is refused under its own name."""
    named = fields(refused(careless.post("/v1/payments", json=payment(metadata=metadata))))
    assert {name.split(".")[0] for name in named} == {"metadata"}


@pytest.mark.parametrize("key", [CANARY + "x" * 41, CANARY + "\0"], ids=["too_long", "nul"])
def test_a_rejected_metadata_key_is_not_repeated(key: str, careless: httpx2.Client) -> None:
    """A key of metadata is what a caller sends, too: where it is rejected, the answer does not repeat it."""
    refused(careless.post("/v1/payments", json=payment(metadata={key: "v"})))


def test_unknown_members_are_named(careless: httpx2.Client) -> None:
    """A member that is not the caller's, or nobody's, is refused by name and its value not repeated."""
    unknown = dict.fromkeys(("returl", "retailerid", "action", "status", "tid", "amout"), CANARY)
    assert fields(refused(careless.post("/v1/payments", json=payment() | unknown))) == sorted(unknown)


def test_all_faults_are_named_at_once(careless: httpx2.Client) -> None:
    """Missing, wrong and unknown members of one request are all in its answer, and no value is."""
    asked = payment(amount=CANARY, email=CANARY, cname=None, currency=CANARY, bankid=CANARY, redirecturl=CANARY)
    asked |= {"details": f"{CANARY}\nx", "msisdn": CANARY, "pmethod": CANARY, "metadata": {"a": [CANARY]}, "x": CANARY}
    named = ["amount", "bankid", "cname", "currency", "details", "email", "metadata.a", "msisdn", "pmethod"]
    problem = refused(careless.post("/v1/payments", json=asked))
    assert fields(problem) == [*named, "redirecturl", "x"]
    assert all(name in problem["detail"] for name in named)


def test_fault_53_a_cvv_is_never_repeated(careless: httpx2.Client) -> None:
    """Whatever is wrong with a request for a saved card, the answer holds neither `cvv` nor `token`."""
    asked = payment(pmethod="cc", amount=0) | {"token": CANARY, "cvv": CANARY}
    refused(careless.post("/v1/payments", json=asked))


def test_nothing_of_all_that_was_recorded_or_sent(
    service: Service, simulator: Simulator, careless: httpx2.Client
) -> None:
    """After all requests of this module the client has no payment, and K-Pay has never heard of one."""
    assert not query(service.database_url, "SELECT refid FROM payments WHERE client = 'careless'")
    assert not query(service.database_url, "SELECT value FROM claims WHERE client = 'careless'")
    ledger = simulator.http.get("/_simulator/payments").json()
    assert not [item["refid"] for item in ledger["items"] if item["refid"].startswith(PREFIX)]
    assert not [refid for refid in ledger["not_recorded"] if refid.startswith(PREFIX)]
