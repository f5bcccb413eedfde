"""Postbacks that mean harm or make no sense: answered at once, kept byte for byte, and nothing is paid by them."""

import json
from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.macs import RETURL, Macs
from tests.support import SECRET_KEY, Json, Service, bodies, hush

LIMIT = 64 * 1024
LONGEST = 5.0
"""Seconds that any answer may take."""
MEMBERS = ("tid", "refid", "momtransactionid", "payaccount", "statusid", "statusdesc", "retcode", "reply", "success")

# In these TID and REFID stand for the payment's own, so that all the rest of each body is taken seriously.
GOOD = b'{"tid": "TID", "refid": "REFID", "momtransactionid": "1", "statusid": "01", "statusdesc": "%s"}'
NUL = {
    "nul": GOOD % b"\0",
    "escaped_nul": GOOD % b"\\u0000",
    "nul_in_tid": GOOD.replace(b"TID", b"TID\\u0000"),
    "nul_in_name": GOOD.replace(b"statusdesc", b"status\\u0000desc"),
    "only_nuls": b"\0" * 1_000,
    "nul_in_form": b"refid=REFID&tid=TID%00&statusid=01&statusdesc=%00\0",
}
SURROGATES = {
    "surrogate": GOOD % b"\xed\xa0\x80",
    "escaped_surrogate": GOOD % b"\\ud800",
    "reversed_surrogates": GOOD % b"\\udc00\\ud800",
    "surrogate_in_name": GOOD.replace(b"statusdesc", b"\\ud800"),
    "surrogate_in_tid": GOOD.replace(b"TID", b"\\ud800"),
    "surrogate_in_refid": GOOD.replace(b"REFID", b"REFID\\ud800"),
    "surrogate_in_momtransactionid": GOOD.replace(b'"1"', b'"\\udfff"'),
    "surrogate_in_form": b"refid=REFID&tid=TID&statusid=01&statusdesc=%ed%a0%80\xed\xbf\xbf",
}
DEEP_AND_LONG = {
    "deep_array": b"[" * LIMIT,
    "deep_object": b'{"a":' * (LIMIT // 5),
    "deep_member": GOOD.replace(b'"%s"', b"[" * 32_000 + b"]" * 32_000),
    "deep_and_open": GOOD.replace(b'"%s"}', b"[" * 60_000),
    "digits": GOOD.replace(b'"%s"', b"9" * 5_000),
    "digits_tid": GOOD.replace(b'"TID"', b"9" * 5_000),
    "digits_statusid": GOOD.replace(b'"01"', b"1" * 60_000),
    "exponent": GOOD.replace(b'"01"', b"1e999999999"),
    "fraction": GOOD.replace(b'"01"', b"1." + b"0" * 5_000),
    "minus_digits": GOOD.replace(b'"1"', b"-" + b"7" * 5_000),
}
NOT_A_NUMBER_AND_NOTHING = {
    "nan": GOOD.replace(b'"01"', b"NaN"),
    "infinity": GOOD.replace(b'"%s"', b"-Infinity"),
    "nan_tid": GOOD.replace(b'"TID"', b"NaN"),
    "only_nan": b"NaN",
    "empty": b"",
    "blank": b" \r\n\t",
    "empty_object": b"{}",
    "empty_array": b"[]",
    "null": b"null",
    "text": b'"01"',
    "number": b"1",
    "not_utf8": GOOD % b"\xff\xfe\x80",
    "only_ff": b"\xff" * 1_000,
    "utf16_odd": b"\xff\xfe\x00",
}
TWICE = {
    "twice_01_02": GOOD.replace(b"}", b', "statusid": "02"}'),
    "twice_02_01": GOOD.replace(b'{"tid"', b'{"statusid": "02", "tid"'),
    "twice_01_01": GOOD.replace(b"}", b', "statusid": 1}'),
    "twice_refid": GOOD.replace(b"}", b', "refid": "another"}'),
    "twice_tid": GOOD.replace(b"}", b', "tid": "another"}'),
    "twice_momtransactionid": GOOD.replace(b"}", b', "momtransactionid": "2"}'),
    "twice_by_escape": GOOD.replace(b"}", b', "status\\u0069d": "02"}'),
    "twice_in_form": b"refid=REFID&tid=TID&momtransactionid=1&statusid=01&statusid=02",
}
ODD = {
    "array": b"[" + GOOD + b"]",
    "byte_order_mark": b"\xef\xbb\xbf" + GOOD,
    "utf16": GOOD.decode().encode("utf-16"),
    "utf16_without_mark": GOOD.decode().encode("utf-16-be"),
    "utf32": GOOD.decode().encode("utf-32"),
    "html": b"<!doctype html><script>alert('REFID 01')</script>",
    "commas": b"," * LIMIT,
    "quotes": b'"' * LIMIT,
    "backslashes": b'{"' + b"\\" * 60_000,
    "members": b"{" + b",".join(b'"m%d": 1' % number for number in range(5_000)) + b"}",
    "commas_in_text": b'{"tid": "TID", "refid": "REFID", "x": "' + b",}" * 30_000 + b'",}',
    "form_fields": b"refid=REFID&statusid=01&" + b"a=1&" * 16_000,
    "form_junk": b"refid=REFID&statusid=%00%ff%ud800&tid=TID",
    "form_mark": b"=&=&&==&refid=REFID&statusid=01&statusid=02",
    "sql": GOOD % b"'; DROP TABLE payments; --",
    "log": GOOD % b'\\r\\n{\\"event\\": \\"forged\\"}\\u001b[2J',
    "right_to_left": GOOD % "\u202e\u2066\ufeff\u0600".encode(),
}
STATUSIDS = [
    "1.0",
    "true",
    "null",
    "[]",
    "{}",
    '["01"]',
    '{"$gt": ""}',
    '"0\N{FULLWIDTH DIGIT ONE}"',
    '"\N{ARABIC-INDIC DIGIT ZERO}\N{ARABIC-INDIC DIGIT ONE}"',
    '"01\\u0000"',
    '" 01 "',
    "-1",
]
STATUSIDS += [
    '"001"',
    '"1e0"',
    '"+1"',
    "1e0",
    '"' + "0" * 5_000 + '1"',
    '"6\N{ARABIC-INDIC DIGIT THREE}4"',
    "01",
    "1" * 17,
    '"\\ud80001"',
]


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def target(service: Service) -> Json:
    """Start the payment that all of this is about: it stays pending, and K-Pay sends nothing by itself."""
    return service.start("250780000005")


@pytest.fixture(scope="module")
def line(service: Service) -> Iterator[httpx2.Client]:
    """Yield one connection that is kept alive, on which an answer may take 5 s."""
    limits = httpx2.Limits(max_connections=1)
    with httpx2.Client(base_url=service.url, trust_env=False, timeout=LONGEST, limits=limits) as http:
        yield http


def answered(line: httpx2.Client, target: Json, body: bytes, **headers: str) -> httpx2.Response:
    """Send a body; the answer must be the listener's own, be there in time and be no 5xx."""
    path = f"/kpay/returl/{target['refid']}/{Macs([SECRET_KEY]).make(RETURL, target['refid'])}"
    answer = line.post(path, content=body, headers=headers)
    if len(body) > LIMIT:
        assert answer.status_code == 413
    else:
        assert (answer.status_code, answer.json().get("reply")) in {(200, "OK"), (400, "ERROR")}
        assert answer.json()["refid"] == target["refid"]
    return answer


def unharmed(service: Service, target: Json, sent: set[bytes]) -> None:
    """Check that the payment is as it was, its timeline can be read, and what was `sent` is kept byte for byte."""
    refid = target["refid"]
    assert service.http.post(f"/v1/payments/{refid}/check").json()["status"] == "pending"
    now = service.read(refid)
    assert (now["status"], now["tid"], now["momtransactionid"]) == ("pending", target["tid"], None)
    timeline = service.events(refid)
    assert [event["seq"] for event in timeline] == list(range(1, len(timeline) + 1))
    assert {event["status"] for event in timeline} <= {"created", "pending"}
    assert sent <= set(bodies(service, refid))
    newest = service.http.get("/v1/payments", params={"tid": target["tid"]}).raise_for_status().json()["items"]
    assert [item["refid"] for item in newest] == [refid]


as_json_and_as_form = pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])


def taken(body: bytes, content_type: str, line: httpx2.Client, target: Json, service: Service) -> httpx2.Response:
    """Send one body of the corpus, check that it did no harm and was kept, and return the answer."""
    body = body.replace(b"TID", target["tid"].encode()).replace(b"REFID", target["refid"].encode())[:LIMIT]
    answer = answered(line, target, body, **{"Content-Type": content_type})
    unharmed(service, target, {body})
    return answer


@as_json_and_as_form
@pytest.mark.parametrize("kind", NUL)
def test_fault_18_nul_in_a_postback(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """A NUL anywhere in a postback, raw or escaped, loses nothing: it is answered, kept byte for byte, and no 5xx."""
    taken(NUL[kind], content_type, line, target, service)


@as_json_and_as_form
@pytest.mark.parametrize("kind", SURROGATES)
def test_fault_19_lone_surrogates_in_a_postback(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """A lone surrogate anywhere in a postback is answered, kept byte for byte, and breaks no page and no row."""
    taken(SURROGATES[kind], content_type, line, target, service)


@as_json_and_as_form
@pytest.mark.parametrize("kind", DEEP_AND_LONG)
def test_fault_20_deep_nesting_and_long_numbers_in_a_postback(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """Brackets by the ten thousand and numbers of 5,000 to 60,000 digits are answered within seconds, and kept."""
    taken(DEEP_AND_LONG[kind], content_type, line, target, service)


@as_json_and_as_form
@pytest.mark.parametrize("kind", NOT_A_NUMBER_AND_NOTHING)
def test_fault_21_nan_broken_utf8_and_nothing_as_a_postback(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """NaN, bytes that are no UTF-8, an empty body and JSON that is no object are answered, kept, and no 5xx."""
    taken(NOT_A_NUMBER_AND_NOTHING[kind], content_type, line, target, service)


@as_json_and_as_form
@pytest.mark.parametrize("kind", TWICE)
def test_fault_22_a_member_twice(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """A postback that names a member twice with different values proves nothing: it is kept, and no value is taken."""
    taken(TWICE[kind], content_type, line, target, service)
    told = [event for event in service.events(target["refid"]) if event["source"] == "postback"][-1]
    assert (told["tid"], told["momtransactionid"], told["statusid"]) == (None, None, None)


@as_json_and_as_form
@pytest.mark.parametrize("kind", ODD)
def test_a_body_that_means_harm(
    kind: str, content_type: str, line: httpx2.Client, target: Json, service: Service
) -> None:
    """Each of the corpus is answered at once and kept; it makes no payment succeed and breaks no page."""
    taken(ODD[kind], content_type, line, target, service)


@pytest.mark.parametrize("statusid", STATUSIDS)
def test_a_statusid_that_is_none(statusid: str, line: httpx2.Client, target: Json, service: Service) -> None:
    """Whatever stands for `statusid`, the postback is read, acknowledged and kept."""
    body = GOOD.replace(b'"01"', statusid.encode()).replace(b"TID", target["tid"].encode())
    body = body.replace(b"REFID", target["refid"].encode())
    answered(line, target, body)
    unharmed(service, target, {body})


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 20_000_000])
def test_fault_14_a_postback_of_any_size(size: int, line: httpx2.Client, target: Json, service: Service) -> None:
    """A postback of 64 KiB is kept whole; a byte more and 20 MB are 413, and nothing of them is stored."""
    body = b'{"%d' % size + b"x" * (size - 2 - len(str(size)))
    answered(line, target, body)
    unharmed(service, target, {body} if size == LIMIT else set())
    assert (body in bodies(service, target["refid"])) == (size == LIMIT)


def test_fault_20_a_body_too_deep_and_too_large(line: httpx2.Client, target: Json, service: Service) -> None:
    """100,000 brackets are over 64 KiB: 413, unread and not stored."""
    kept = bodies(service, target["refid"])
    for body in (b"[" * 100_000, b'{"a":' * 100_000):
        assert answered(line, target, body).status_code == 413
    assert bodies(service, target["refid"]) == kept
    unharmed(service, target, set())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
unpredictable = settings(
    max_examples=200,
    deadline=LONGEST * 1000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_fault_19_any_text_as_a_postback(service: Service, target: Json, line: httpx2.Client) -> None:
    """Any text over all code points, lone surrogates and NUL among them, is answered and kept, in JSON or as it is."""
    sent: set[bytes] = set()

    @unpredictable
    @given(st.text(st.characters()), st.booleans())
    def harmless(text: str, wrapped: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        said = {"tid": target["tid"], "refid": target["refid"], "statusid": "01", "statusdesc": text, text: text}
        body = json.dumps(said, ensure_ascii=len(text) % 2 == 0) if wrapped else text
        sent.add(body.encode("utf-8", "surrogatepass"))
        answered(line, target, body.encode("utf-8", "surrogatepass"))

    harmless()
    unharmed(service, target, sent)


def test_fault_21_any_bytes_as_a_postback(service: Service, target: Json, line: httpx2.Client) -> None:
    """Any bytes are answered and kept byte for byte, also behind a good beginning and under any content type."""
    sent: set[bytes] = set()
    begin = b'{"tid": "%s", "refid": "%s", "statusid": "01"' % (target["tid"].encode(), target["refid"].encode())

    @unpredictable
    @given(st.binary(max_size=300), st.sampled_from([b"", begin, begin + b', "x": "']), st.sampled_from(["", "a/b"]))
    def harmless(tail: bytes, start: bytes, content_type: str) -> None:
        sent.add(start + tail)
        answered(line, target, start + tail, **({"Content-Type": content_type} if content_type else {}))

    harmless()
    unharmed(service, target, sent)


def test_fault_17_any_json_under_kpays_names(service: Service, target: Json, line: httpx2.Client) -> None:
    """Values of any type and depth for K-Pay's own members are answered, kept, and decide nothing by themselves."""
    sent: set[bytes] = set()

    @unpredictable
    @given(st.dictionaries(st.sampled_from(MEMBERS), anything), st.booleans())
    def harmless(said: Json, ours: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        body = json.dumps(said | ({"refid": target["refid"]} if ours else {})).encode()[:LIMIT]
        sent.add(body)
        answered(line, target, body)

    harmless()
    unharmed(service, target, sent)
