"""The reader of everything that K-Pay says: a fixed corpus, hostile bodies and whatever Hypothesis thinks of."""

import json
import time
import unicodedata
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.kpay.wire import MAX_VALUE, Message, read

FORM = "application/x-www-form-urlencoded"
QUICK = settings(max_examples=300, database=None, deadline=None)

PAID = Message(tid="A1", refid="R1", momtransactionid="616730887", statusid="01", statusdesc="Done")
PAID_JSON = '{"tid":"A1","refid":"R1","momtransactionid":"616730887","statusid":"01","statusdesc":"Done"}'

CORPUS = {
    "plain": (PAID_JSON.encode(), PAID),
    "white-space-around": (b" \r\n\t" + PAID_JSON.encode() + b"\r\n ", PAID),
    "closing-brace-too-many": (PAID_JSON.encode() + b"}", PAID),
    "characters-after": (PAID_JSON.encode() + b"<br/>OK", PAID),
    "a-second-object-after": (PAID_JSON.encode() + b'{"statusid":"02"}', PAID),
    "trailing-comma": (PAID_JSON.replace('"Done"}', '"Done",\r\n}').encode(), PAID),
    "utf-8-mark": (b"\xef\xbb\xbf" + PAID_JSON.encode(), PAID),
    "utf-16-little": (PAID_JSON.encode("utf-16"), PAID),
    "utf-16-big": (b"\xfe\xff" + PAID_JSON.encode("utf-16-be"), PAID),
    "utf-16-cut": (PAID_JSON.encode("utf-16") + b"\x20", PAID),
    "numbers-for-strings": (b'{"tid":12,"statusid":1,"retcode":0}', Message("12", statusid="01", retcode="0")),
    "tid-0": (b'{"tid":0,"refid":"R1","retcode":0}', Message(refid="R1", retcode="0")),
    "tid-0-as-text": (b'{"tid":"0","refid":"R1"}', Message(refid="R1")),
    "empty-texts": (b'{"tid":"","refid":" ","statusid":"611"}', Message(statusid="611")),
    "null": (b'{"tid":null,"statusid":"03"}', Message(statusid="03")),
    "structures": (b'{"tid":{"a":1},"refid":["R1"],"statusid":"03"}', Message(statusid="03")),
    "comma-within-text": (b'{"statusdesc":"a,}","reply":"b\\",]",}', Message(statusdesc="a,}", reply='b",]')),
    "trailing-comma-in-list": (
        b'{"reply":[{"token":"t",},],"retcode":0}',
        Message(retcode="0", replies=({"token": "t"},)),
    ),
    "one-digit-statusid": (b'{"statusid":"2"}', Message(statusid="02")),
    "retcode-keeps-its-digits": (b'{"retcode":"606"}', Message(retcode="606")),
    "not-a-number": (b'{"tid":NaN,"refid":Infinity,"statusid":"01"}', Message(statusid="01")),
    "fraction": (b'{"statusid":1.0}', Message(statusid="1.0")),
    "success-1": (b'{"success":1}', Message(success=True)),
    "success-false": (b'{"success":false}', Message(success=False)),
    "success-in-words": (b'{"success":"yes"}', Message()),
    "unknown-members": (b'{"statusid":"01","card":"4..1","apr":{}}', Message(statusid="01", unseen=("apr", "card"))),
    "known-and-unremarkable": (b'{"authkey":"x","comtime":"2020-09-14 22:46:11","initime":"x"}', Message()),
    "nul": (b'{"tid":"A\\u00001","refid":"R\x001"}', Message(tid="A 1", refid="R 1")),
    "lone-surrogates": (b'{"tid":"A\\ud8001","refid":"\\udfff"}', Message(tid="A 1")),
    "surrogate-pair": (b'{"statusdesc":"\\ud83d\\ude00"}', Message(statusdesc="\U0001f600")),
    "invalid-utf-8": (b'{"tid":"A\xff1"}', Message(tid="A\ufffd1")),
    "escape-sequences": (b'{"statusdesc":"\\u001b[31mred\\u009b\\r\\nnext"}', Message(statusdesc="[31mred   next")),
    "digits-5000": (b'{"retcode":' + b"9" * 5_000 + b"}", Message(retcode="9" * MAX_VALUE)),
    "long-text": (b'{"statusdesc":"' + b"x" * 5_000 + b'"}', Message(statusdesc="x" * MAX_VALUE)),
    "twice-the-same": (b'{"statusid":"01","statusid":"01"}', Message(statusid="01")),
    "twice-not-the-same": (b'{"statusid":"01","statusid":"02"}', Message(statusid="02", ambiguous=True)),
    "thrice-and-back": (b'{"tid":"A","tid":"B","tid":"A"}', Message(tid="A", ambiguous=True)),
    "form-unannounced": (b"tid=A1&statusid=1&url=a+b%21", Message("A1", statusid="01", url="a b!")),
    "form-with-line-end": (b"statusid=1&tid=0\r\n", Message(statusid="01")),
    "form-twice": (b"statusid=01&statusid=02", Message(statusid="02", ambiguous=True)),
    "form-hostile": (b"tid=%00&refid=%ff&statusdesc=%1b[0m", Message(refid="\ufffd", statusdesc="[0m")),
    "form-of-other-things": (b"a=1&b=2", None),
    "form-of-too-many": (b"a=1&" * 200, None),
    "html": (b"<html><body>statusid=01</body></html>", None),
    "words": (b"Service Unavailable", None),
    "empty": (b"", None),
    "only-white-space": (b" \r\n\0", None),
    "only-a-mark": (b"\xef\xbb\xbf", None),
    "list": (b"[]", None),
    "list-of-object": (b'[{"statusid":"01"}]', None),
    "bare-text": (b'"statusid"', None),
    "cut": (PAID_JSON[:-1].encode(), None),
    "cut-in-text": (PAID_JSON[:60].encode(), None),
    "single-quotes": (b"{'statusid':'01'}", None),
    "deep-lists": (b'{"tid":' + b"[" * 100_000, None),
    "deep-objects": (b'{"a":' * 100_000, None),
    "deep-and-closed": (b'{"tid":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "no-members": (b"{}", Message()),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), CORPUS.values(), ids=CORPUS)
def test_corpus(body: bytes, message: Message | None) -> None:
    """Each body of the corpus is read as it should be, or as nothing."""
    assert read(body) == message


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/html; charset=utf-8", FORM, "words"])
def test_json_whatever_the_content_type(content_type: str) -> None:
    """JSON is read as JSON, also where it is announced as a form."""
    assert read(PAID_JSON.encode(), content_type) == PAID


@pytest.mark.parametrize("content_type", ["", "application/json", FORM, f"{FORM.upper()}; charset=utf-8"])
def test_form_whatever_the_content_type(content_type: str) -> None:
    """A form is read as a form, also where it is announced as JSON or as nothing."""
    assert read(b"tid=A1&refid=R1&statusid=01", content_type) == Message("A1", "R1", statusid="01")


def test_line_break_inside_a_value() -> None:
    """The guide's own refusal, with raw line breaks inside its values and a tid that ends in one."""
    body = b"""{"reply":"TARGET_AUTHORIZATION_ERROR","url":
"\n", "success":0, "authkey":"rttdr2vr1hrdho853nfuvdkq01", "tid":"E6974691594723427
", "refid":"15947234071471114", "retcode":606}"""
    assert read(body) == Message(
        tid="E6974691594723427",
        refid="15947234071471114",
        reply="TARGET_AUTHORIZATION_ERROR",
        retcode="606",
        success=False,
    )


def test_unseen_members_are_few_and_short() -> None:
    """Whoever sends a thousand members of a thousand characters gets ten short names remembered."""
    members = {f"{number:04}{'x' * 1_000}\n": 1 for number in range(1_000)}
    message = read(json.dumps(members).encode())
    assert message is not None
    assert len(message.unseen) == 10
    assert all(len(name) <= 40 and name.isprintable() for name in message.unseen)


def is_clean(message: Message | None) -> bool:
    """Whether every text of a message can be stored, logged and sent on."""
    values = [getattr(message, each.name) for each in fields(Message)] if message else []
    texts = [text for text in values if isinstance(text, str)] + list(message.unseen if message else [])
    for text in texts:
        text.encode()
        assert len(text) <= MAX_VALUE
        assert not {unicodedata.category(char) for char in text} & {"Cc", "Cs", "Zl", "Zp"}
    return True


ANY_TEXT = st.text(st.characters(), max_size=60)  # every code point, surrogates too
NAMES = st.sampled_from(["tid", "refid", "momtransactionid", "statusid", "statusdesc", "retcode", "success", "url"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT | NAMES, inner, max_size=4),
    max_leaves=8,
)
CONTENT_TYPES = st.sampled_from(["", "application/json", FORM]) | ANY_TEXT


@QUICK
@given(st.binary(max_size=200), CONTENT_TYPES)
def test_any_bytes(body: bytes, content_type: str) -> None:
    """No bytes whatever make the reader raise, or say something that cannot be stored."""
    assert is_clean(read(body, content_type))


@QUICK
@given(ANY_TEXT, CONTENT_TYPES, st.sampled_from(["utf-8", "utf-16", "utf-32", "latin-1"]))
def test_any_text(text: str, content_type: str, encoding: str) -> None:
    """Text of any code points, in any encoding, makes the reader neither raise nor say what cannot be stored."""
    errors = "replace" if encoding == "latin-1" else "surrogatepass"
    assert is_clean(read(text.encode(encoding, errors), content_type))


@QUICK
@given(st.dictionaries(NAMES | ANY_TEXT, ANY_JSON, max_size=6), st.booleans(), CONTENT_TYPES)
def test_any_json(value: dict[str, Any], ascii_only: bool, content_type: str) -> None:  # noqa: FBT001 - Hypothesis names it
    """Any JSON object is read, whatever its values, and what is read can be stored."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    message = read(body, content_type)
    assert message is not None
    assert is_clean(message)


PRINTABLE = ANY_TEXT.map(lambda text: "".join(char for char in text if char.isprintable()).strip()).filter(bool)
MEMBERS = {
    "statusid": PRINTABLE.filter(lambda text: text not in set("123456789")),  # those are read as 01 to 09
    **dict.fromkeys(("tid", "momtransactionid", "payaccount"), PRINTABLE.filter(lambda text: text != "0")),
    **dict.fromkeys(("refid", "statusdesc", "retcode", "reply", "url"), PRINTABLE),
}


@QUICK
@given(st.fixed_dictionaries({}, optional=MEMBERS), st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_round_trip(members: dict[str, str], ascii_only: bool, encoding: str) -> None:  # noqa: FBT001 - Hypothesis names it
    """Whatever printable text K-Pay puts into its members is read back unchanged."""
    assert read(json.dumps(members, ensure_ascii=ascii_only).encode(encoding)) == Message(**members)  # type: ignore[arg-type] # texts alone


@pytest.mark.parametrize("prefix", ["", "{", '{"tid":', '{"tid":"', '{"tid":['])
@pytest.mark.parametrize(
    "unit",
    [",", "{", '"', "9", "\\", "[", " ", "\0", "&", "%", "a=1&", '{"a":', '"a":1,', "\\u0000", "1,]", "\ufeff", "1e"],
    ids=ascii,
)
def test_64_kib_of_anything_is_read_fast(prefix: str, unit: str) -> None:
    """No body of 64 KiB keeps a process busy."""
    body = (prefix + unit * 65_536).encode()[:65_536]
    began = time.process_time()
    read(body)
    read(body, FORM)
    assert time.process_time() - began < 0.5


def test_multipart_is_read() -> None:
    """PHP's curl sends an array as multipart/form-data."""
    members = {"tid": "A1", "refid": "R1", "momtransactionid": "616730887", "statusid": "01", "statusdesc": "Done"}
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in members.items()
    ]
    message = read(("".join(parts) + "--XX--\r\n").encode(), "multipart/form-data; boundary=XX")
    assert message == PAID
    assert read(b"--XX\r\nbroken", "multipart/form-data; boundary=XX") is None
    assert read(b"anything", "multipart/form-data") is None


@pytest.mark.parametrize("member", ["tid", "momtransactionid", "payaccount"])
def test_zero_is_no_id(member: str) -> None:
    """K-Pay writes 0 where it has no id: two payments with 0 share nothing."""
    message = read(json.dumps({"refid": "R1", member: 0}).encode())
    assert message is not None
    assert getattr(message, member) is None
