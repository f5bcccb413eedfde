"""One tolerant reader for everything that K-Pay says: answers to our calls on any HTTP status, and postbacks.

K-Pay's guide shows trailing commas, a closing brace too many, numbers for strings and line breaks inside values; it
names no content type. `read` never raises: what it cannot make out is `None`, and the raw bytes are kept elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl

from python_multipart import parse_form
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field

MAX_VALUE = 1_000
"""Characters kept of one value; the raw bytes keep all of it."""

_KNOWN = ("tid", "refid", "momtransactionid", "payaccount", "statusid", "statusdesc", "retcode", "reply", "url")

_OF_CARDS = ("cardhash", "scheme", "token")
_MEANT = frozenset({*_KNOWN, *_OF_CARDS, "success"})
_UNREMARKABLE = frozenset({*_KNOWN, "success", "authkey", "comtime", "initime"})
_FORM = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_WHITE = " \t\r\n\f\v\0\ufeff"
_MAX_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Message:
    """What one body says, in K-Pay's field names; an absent or empty member is None.

    `replies` are the objects of a `reply` that is a list (guide, "Request token registered on a client").
    `ambiguous` tells that a member stood twice with different values: such a message proves nothing.
    `unseen` names members that this service does not know (docs/rules.md, 10).
    """

    tid: str | None = None
    refid: str | None = None
    momtransactionid: str | None = None
    payaccount: str | None = None
    statusid: str | None = None
    statusdesc: str | None = None
    retcode: str | None = None
    reply: str | None = None
    url: str | None = None
    success: bool | None = None
    replies: tuple[Mapping[str, str | None], ...] | None = None
    ambiguous: bool = False
    unseen: tuple[str, ...] = field(default=())


def read(body: bytes, content_type: str = "") -> Message | None:
    """Return what `body` says, or None where no JSON object and no form can be made out of it."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        return _multipart(body, content_type)
    if kind == _FORM:
        return _form(body) or _json(body)
    return _json(body) or _form(body)


def _json(body: bytes) -> Message | None:
    text = decode(body).lstrip(_WHITE)
    if not text.startswith("{"):
        return None
    for mend in (str, _without_trailing_commas):
        try:
            pairs, _ = _DECODER.raw_decode(mend(text))
        except (ValueError, RecursionError):
            continue
        return _message(pairs) if isinstance(pairs, _Pairs) else None
    return None


class _Pairs(list[tuple[str, Any]]):
    """The members of one JSON object in their order, repetitions included."""


def _digits(text: str) -> int | str:
    """Return an integer of sane length; a longer one stays text (and is cut), for converting it costs seconds."""
    return int(text) if len(text) <= _MAX_DIGITS else text


# strict=False: the guide itself has line breaks inside values.
_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_digits, parse_float=str, strict=False)


def decode(body: bytes) -> str:
    """Return a body as text, whatever it is; what is no text in it is replaced."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return body.decode("utf-16", "replace")
    return body.decode("utf-8-sig", "replace")


def _without_trailing_commas(text: str) -> str:
    """Return `text` without commas that stand before a closing bracket, strings left alone."""
    kept: list[str] = []
    in_string = escaped = False
    comma: int | None = None
    for char in text:
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string, comma = True, None
        elif char == ",":
            comma = len(kept)
        elif char in "}]" and comma is not None:
            kept[comma] = ""
            comma = None
        elif not char.isspace():
            comma = None
        kept.append(char)
    return "".join(kept)


def _form(body: bytes) -> Message | None:
    text = decode(body).strip(_WHITE)
    if not text or text[0] in "{[<" or "=" not in text:
        return None
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="replace")
    except ValueError:
        return None
    message = _message(pairs)
    return message if any(getattr(message, name) for name in _KNOWN) else None


def _multipart(body: bytes, content_type: str) -> Message | None:
    """Read multipart/form-data, which PHP's curl sends where it is given an array."""
    pairs: list[tuple[str, str]] = []

    def keep(field: Field) -> None:
        pairs.append((decode(field.field_name or b""), decode(field.value or b"")))

    try:
        parse_form({"Content-Type": content_type.encode("latin-1", "replace")}, BytesIO(body), keep, None)
    except (FormParserError, ValueError):
        return None
    message = _message(pairs)
    return message if any(getattr(message, name) for name in _KNOWN) else None


def _message(pairs: Sequence[tuple[str, Any]]) -> Message:
    raws = dict(pairs)
    said = {name: _text(raw) for name, raw in raws.items()}.get
    items = _objects(raws.get("reply"))
    ambiguous = _says_two_things(pairs) or any(map(_says_two_things, items or ()))
    return Message(
        tid=_id(said("tid")),
        refid=said("refid"),
        momtransactionid=_id(said("momtransactionid")),
        payaccount=_id(said("payaccount")),
        statusid=_statusid(said("statusid")),
        statusdesc=said("statusdesc"),
        retcode=said("retcode"),
        reply=said("reply"),
        url=said("url"),
        success={"0": False, "1": True, "false": False, "true": True}.get(said("success") or ""),
        replies=None if items is None else tuple({name: _text(raw) for name, raw in item} for item in items),
        ambiguous=ambiguous,
        unseen=tuple(sorted(clean(name)[:40] for name in raws.keys() - _UNREMARKABLE))[:10],
    )


def _says_two_things(pairs: Sequence[tuple[str, Any]]) -> bool:
    """Whether a member that means something stands twice with different values."""
    if len(pairs) == len(dict(pairs)):
        return False
    first: dict[str, object] = {}
    for name, raw in pairs:
        said = raw if isinstance(raw, list) else _text(raw)
        if name in _MEANT and first.setdefault(name, said) != said:
            return True
    return False


def _objects(value: object) -> Sequence[_Pairs] | None:
    """Return the objects of a list, or of an object that stands for one (PHP, where a list has gaps); else None."""
    if isinstance(value, _Pairs):
        each = [item for _, item in value]
        return each if all(isinstance(item, _Pairs) for item in each) else [value]
    return [item for item in value if isinstance(item, _Pairs)] if isinstance(value, list) else None


def _id(value: str | None) -> str | None:
    """Return an id; K-Pay writes 0 for "none" in some of them."""
    return None if value == "0" else value


def _statusid(value: str | None) -> str | None:
    """Return `1` as `01`: K-Pay's two-digit codes arrive as numbers from some of its systems."""
    return f"0{value}" if value and len(value) == 1 and value in "123456789" else value


def _text(value: object) -> str | None:
    """Return a scalar as clean text; None for null, an empty text or a structure."""
    if isinstance(value, bool):
        return str(value).lower()
    return clean(value) or None if isinstance(value, str) else str(value) if isinstance(value, int) else None


def clean(value: str) -> str:
    """Return `value` as text that PostgreSQL, JSON and a log take: no control characters or lone surrogates, short."""
    if value.isprintable():  # nearly always, and then neither a control character nor a surrogate is in it
        return value[: 2 * MAX_VALUE].strip()[:MAX_VALUE]
    kept = "".join(char if char.isprintable() or char == " " else " " for char in value[: 2 * MAX_VALUE])
    return kept.encode("utf-8", "replace").decode().strip()[:MAX_VALUE]
