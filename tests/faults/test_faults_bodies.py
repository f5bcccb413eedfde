"""Requests of the REST API that mean harm: no 5xx, no hang, and no payment that cannot be read back.

The same for postbacks is in `tests/service/test_hostile_postbacks.py`; single faults of single members are in
`tests/service/test_bad_input.py`.
"""

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import Json, Service, Simulator, new_refid, payment

PAID_AT_ONCE = "250780000007"
LIMIT = 64 * 1024
LONGEST = 5.0
"""Seconds that any answer may take."""
LINES = ("details", "cname", "cnumber", "orderid", "email", "redirecturl", "logourl", "msisdn")
"""Texts that are taken without the white space around them."""
WORDS = ("refid", "pmethod", "currency", "bankid")
FRAMES = {"email": "%s@example.rw", "redirecturl": "https://shop.example.rw/%s", "logourl": "https://x.rw/?%s"}
PARAMETERS = (
    "status",
    "pmethod",
    "msisdn",
    "tid",
    "needs_review",
    "created_after",
    "created_before",
    "limit",
    "cursor",
)

GOOD = json.dumps(payment(PAID_AT_ONCE)).encode()
NUL = {
    "nul": GOOD.replace(b"order 1042", b"a\0b"),
    "escaped_nul": GOOD.replace(b"order 1042", b"a\\u0000b"),
    "nul_in_name": GOOD.replace(b'"details"', b'"details\\u0000"'),
    "nul_in_unknown_name": GOOD.replace(b"{", b'{"\\u0000": 1, '),
    "nul_after": GOOD + b"\0",
    "only_nuls": b"\0" * 1_000,
}
SURROGATES = {
    "surrogate": GOOD.replace(b"order 1042", b"\\ud800"),
    "raw_surrogate": GOOD.replace(b"order 1042", b"\xed\xa0\x80"),
    "surrogate_in_name": GOOD.replace(b'"details"', b'"\\ud800"'),
    "surrogate_in_unknown_name": GOOD.replace(b"{", b'{"\\udfff": 1, '),
    "raw_surrogate_in_unknown_name": GOOD.replace(b"{", b'{"\xed\xbf\xbf": 1, '),
    "surrogate_in_metadata": GOOD.replace(b"{", b'{"metadata": {"a": "\\ud800"}, '),
    "surrogate_in_key": GOOD.replace(b"{", b'{"metadata": {"\\ud800": "v"}, '),
    "surrogate_in_key_of_no_text": GOOD.replace(b"{", b'{"metadata": {"\\ud800": 5}, '),
    "surrogate_in_key_of_nothing": GOOD.replace(b"{", b'{"metadata": {"a": {"\\ud800": null}}, '),
    "pair": GOOD.replace(b"order 1042", b"\\ud83d\\ude00"),
}
DEEP_AND_LONG = {
    "deep_array": b"[" * 60_000,
    "deep_object": b'{"a":' * 12_000,
    "deep_too_large": b"[" * 100_000,
    "deep_member": GOOD.replace(b"{", b'{"metadata": ' + b"[" * 30_000 + b"]" * 30_000 + b", "),
    "deep_unknown": GOOD.replace(b"{", b'{"x": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b", "),
    "digits": GOOD.replace(b"4200", b"9" * 5_000),
    "many_digits": GOOD.replace(b"4200", b"9" * 60_000),
    "minus_digits": GOOD.replace(b"4200", b"-" + b"9" * 5_000),
    "zeros": GOOD.replace(b"4200", b"0" * 5_000 + b"1"),
    "fraction": GOOD.replace(b"4200", b"1." + b"0" * 5_000),
    "exponent": GOOD.replace(b"4200", b"1e999999999"),
    "digits_for_text": GOOD.replace(b'"order 1042"', b"9" * 5_000),
}
NOT_A_NUMBER_AND_NOTHING = {
    "nan": GOOD.replace(b"4200", b"NaN"),
    "infinity": GOOD.replace(b"4200", b"-Infinity"),
    "nan_for_text": GOOD.replace(b'"order 1042"', b"NaN"),
    "nan_unknown": GOOD.replace(b"{", b'{"x": NaN, '),
    "only_nan": b"NaN",
    "empty": b"",
    "blank": b" \r\n\t",
    "empty_object": b"{}",
    "empty_array": b"[]",
    "null": b"null",
    "not_utf8": GOOD.replace(b"order 1042", b"\xff\xfe\x80"),
    "not_utf8_in_name": GOOD.replace(b"{", b'{"\xff": 1, '),
    "byte_order_mark": b"\xef\xbb\xbf" + GOOD,
    "utf16": GOOD.decode().encode("utf-16"),
    "utf32": GOOD.decode().encode("utf-32"),
    "utf16_odd": b"\xff\xfe\x00",
    "array_of_it": b"[" + GOOD + b"]",
    "html": b"<!doctype html>",
    "quotes": b'"' * LIMIT,
    "backslashes": b'{"' + b"\\" * 60_000,
    "members": b"{" + b",".join(b'"m%d": 1' % number for number in range(5_000)) + b"}",
    "long_name": GOOD.replace(b"{", b'{"' + b"x" * 60_000 + b'": 1, '),
}
TWICE = {
    "amount": GOOD.replace(b"{", b'{"amount": 1, '),
    "amount_last": GOOD[:-1] + b', "amount": 1}',
    "amount_bad_last": GOOD[:-1] + b', "amount": 0}',
    "by_escape": GOOD[:-1] + b', "am\\u006funt": 1}',
    "refid": GOOD.replace(b"{", b'{"refid": "a", "refid": "REFID", '),
    "metadata": GOOD.replace(b"{", b'{"metadata": {"k": "1", "k": "2"}, '),
}
AS_JSON = {"Content-Type": "application/json"}


class Patient(httpx2.Client):
    """A client that comes again where the service is behind, as it may be on a machine that is full of tests."""

    def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:  # noqa: ANN401 - httpx2's own
        """Send a request until it is not turned away any more."""
        answer = super().send(request, **how)
        for _ in range(50):
            if answer.status_code != 503 or answer.json()["code"] != "overloaded":
                break
            time.sleep(0.1)
            answer = super().send(request, **how)
        return answer


@pytest.fixture(scope="module")
def mean(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of an API client that means harm, on one connection."""
    limits = httpx2.Limits(max_connections=1)
    headers = {"Authorization": f"Bearer {service.new_key('mean')}"}
    with Patient(base_url=service.url, headers=headers, trust_env=False, timeout=LONGEST, limits=limits) as http:
        yield http


def asked(mean: httpx2.Client, body: bytes) -> Json | None:
    """Ask for a payment; it is refused as a problem, or can be read back everywhere as it was answered."""
    answer = mean.post("/v1/payments", content=body, headers=AS_JSON)
    if answer.status_code not in {200, 201}:
        assert answer.status_code in {409, 413, 422}, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
        return None
    started: Json = answer.json()
    read_back(mean, started)
    return started


def read_back(mean: httpx2.Client, started: Json) -> None:
    """Check that a payment, its timeline and the page that it is on can be read, and are as they were answered."""
    path = f"/v1/payments/{started['refid']}"
    assert mean.get(path).raise_for_status().json() == started
    assert mean.get(f"{path}/events").raise_for_status().json()["items"]
    listed = mean.get("/v1/payments", params={"limit": 1}).raise_for_status().json()["items"]
    assert listed == [started]


@pytest.mark.parametrize("kind", NUL)
def test_fault_18_nul_in_a_request(kind: str, mean: httpx2.Client) -> None:
    """A NUL anywhere in a request, raw or escaped, is refused with 422, and nothing is recorded."""
    assert asked(mean, NUL[kind]) is None


@pytest.mark.parametrize("kind", SURROGATES)
def test_fault_19_lone_surrogates_in_a_request(kind: str, mean: httpx2.Client) -> None:
    """A lone surrogate anywhere in a request, names included, is refused with 422; a pair of them is a character."""
    started = asked(mean, SURROGATES[kind])
    assert (started and started["details"]) == ("\N{GRINNING FACE}" if kind == "pair" else None)


@pytest.mark.parametrize("kind", DEEP_AND_LONG)
def test_fault_20_deep_nesting_and_long_numbers_in_a_request(kind: str, mean: httpx2.Client) -> None:
    """Deep nesting and long numbers in a request are refused within seconds, and nothing is recorded."""
    assert asked(mean, DEEP_AND_LONG[kind]) is None


@pytest.mark.parametrize("kind", NOT_A_NUMBER_AND_NOTHING)
def test_fault_21_nan_broken_utf8_and_nothing_as_a_request(kind: str, mean: httpx2.Client) -> None:
    """What is no JSON object in Unicode is refused; in UTF-16 or UTF-32, which JSON once allowed, it may be read."""
    started = asked(mean, NOT_A_NUMBER_AND_NOTHING[kind])
    assert started is None or kind in {"byte_order_mark", "utf16", "utf32"}


@pytest.mark.parametrize("kind", TWICE)
def test_fault_22_a_member_twice_in_a_request(kind: str, mean: httpx2.Client, simulator: Simulator) -> None:
    """Of a member that stands twice in a request one value counts, for the caller, the database and K-Pay alike."""
    started = asked(mean, TWICE[kind].replace(b"REFID", new_refid().encode()))
    assert started is None or (simulator.ledger(started["refid"]) or {})["amount"] == started["amount"]


@pytest.mark.parametrize("size", [LIMIT + 1, 20_000_000])
def test_fault_14_a_request_that_is_too_large(size: int, mean: httpx2.Client) -> None:
    """A request over 64 KiB is 413, however much over, and nothing is recorded."""
    answer = mean.post("/v1/payments", content=GOOD.ljust(size), headers=AS_JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "path",
    ["%00", "%ff", "%ed%a0%80", "%F0%9F%98%80", "%0d%0a", "%2e%2e", "%2f", "a%00", "x" * 41, "x" * 8_000, "%", "%zz"],
)
def test_fault_21_a_refid_that_is_none(path: str, mean: httpx2.Client) -> None:
    """A path that holds no refid, whatever its bytes, is 404 at once, with and without what can be asked of it."""
    for answer in (
        mean.get(f"/v1/payments/{path}"),
        mean.get(f"/v1/payments/{path}/events"),
        mean.post(f"/v1/payments/{path}/check"),
        mean.post(f"/kpay/returl/{path}/{path}", content=b"{}"),
    ):
        assert answer.status_code == 404, answer.text


anything = st.text(st.characters(), max_size=220)
bounded = settings(
    derandomize=True,
    max_examples=200,
    deadline=LONGEST * 1000,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def is_taken(sent: Json, taken: Json | None) -> bool:
    """Whether a payment has each text as it was sent, less the white space around a line."""
    return taken is None or all(
        taken[name] == (value.strip() if name in LINES and isinstance(value, str) else value)
        for name, value in sent.items()
    )


def test_fault_19_any_text_in_a_request(mean: httpx2.Client) -> None:
    """Any text over all code points, in any member: never a 5xx, and what is taken is given back as it was sent."""
    seen = []

    @bounded
    @given(st.sampled_from((*LINES, *WORDS)), anything, st.booleans(), st.booleans())
    def harmless(name: str, text: str, framed: bool, escaped: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        sent = payment(PAID_AT_ONCE) | {name: FRAMES.get(name, "%s").replace("%s", text) if framed else text}
        started = asked(mean, json.dumps(sent, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
        assert is_taken(sent, started)
        seen.append(started is not None)

    harmless()
    assert set(seen) == {True, False}


def test_fault_19_any_metadata_in_a_request(mean: httpx2.Client) -> None:
    """Any metadata over all code points: never a 5xx, and what is taken is given back to the letter."""
    seen = []

    @bounded
    @given(st.dictionaries(st.text(st.characters(), max_size=45), anything | st.none() | st.integers(), max_size=3))
    def harmless(metadata: Json) -> None:
        sent = payment(PAID_AT_ONCE, metadata=metadata)
        started = asked(mean, json.dumps(sent).encode())
        assert is_taken(sent, started)
        seen.append(started is not None)

    harmless()
    assert set(seen) == {True, False}


def test_fault_21_any_json_as_a_request(mean: httpx2.Client) -> None:
    """Values of any type for the members of a request, and any bytes as a request: never a 5xx."""
    value = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | anything,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
        max_leaves=6,
    )
    members = ("amount", *LINES, *WORDS, "metadata")

    @bounded
    @given(st.dictionaries(st.sampled_from(members), value, min_size=1, max_size=3), st.binary(max_size=50))
    def harmless(changes: Json, tail: bytes) -> None:
        asked(mean, json.dumps(payment(PAID_AT_ONCE) | changes).encode()[:LIMIT])
        asked(mean, GOOD[:-1] + tail)

    harmless()


def test_fault_19_any_text_as_a_parameter(mean: httpx2.Client) -> None:
    """Any text over all code points as a parameter or a path of a reading: 200, 404 or 422, and never a 5xx."""

    @bounded
    @given(st.sampled_from(PARAMETERS), anything, st.dictionaries(anything, anything, max_size=2))
    def harmless(name: str, text: str, more: dict[str, str]) -> None:
        given_ = "&".join(f"{escaped(key)}={escaped(value)}" for key, value in {name: text, **more}.items())
        assert mean.get(f"/v1/payments?{given_}").status_code in {200, 422}
        assert mean.get(f"/v1/payments?{name}={escaped(text)}").status_code in {200, 422}
        assert mean.get(f"/v1/payments/{escaped(text)}?wait={escaped(text)}").status_code in {404, 422}

    harmless()


def escaped(text: str) -> str:
    """Return any text as it stands in a URL."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")
