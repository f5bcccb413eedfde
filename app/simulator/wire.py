"""How K-Pay's messages are written down: properly, and in each of the ways that have to be survived.

A `Writer` makes a message into bytes and their content type. Behaviours name writers; nothing else chooses one.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlencode

Message = Mapping[str, object]
Writer = Callable[[Message], tuple[bytes, str]]

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
HTML: Final = "text/html; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"


def as_json(message: Message) -> tuple[bytes, str]:
    """Write proper JSON, in ASCII: what a caller sent as a lone surrogate goes back as its escape."""
    return json.dumps(message, separators=(",", ":")).encode("ascii"), JSON


def as_numbers(message: Message) -> tuple[bytes, str]:
    """Write tid, statusid and momtransactionid as numbers, `"statusid": 1`, where their digits allow it."""
    loose = {"tid", "statusid", "momtransactionid"}
    digits = {name: text for name, text in message.items() if isinstance(text, str) and text.isdecimal()}
    return as_json({**message, **{name: int(text) for name, text in digits.items() if name in loose}})


def as_form(message: Message) -> tuple[bytes, str]:
    """Write a form's body."""
    return urlencode(message, errors="replace").encode(), FORM


def cut_short(message: Message) -> tuple[bytes, str]:
    """Write JSON that ends in the middle."""
    body, content_type = as_json(message)
    return body[: len(body) * 2 // 3], content_type


def one_brace_too_many(message: Message) -> tuple[bytes, str]:
    """Write JSON with `}}` at its end, as the guide's answer to "Payment request by token" has it."""
    body, content_type = as_json(message)
    return body + b"}", content_type


def raw_newlines(message: Message) -> tuple[bytes, str]:
    """Write line breaks inside url and tid, unescaped, as the guide's first refusal has them ("Test cards: Response").

    That is no JSON: a strict reader refuses control characters in a string.
    """
    body, content_type = as_json({**message, "url": "\n", "tid": f"{message['tid']}\n"})
    return body.replace(b"\\n", b"\n"), content_type


def all_quirks(message: Message) -> tuple[bytes, str]:
    """Write text/plain with a byte-order mark, a line break after the tid, a trailing comma and a second `}`."""
    body, _ = as_json({**message, "tid": f"{message['tid']}\n"})
    return b"\xef\xbb\xbf" + body[:-1] + b",\n}}", TEXT


def nothing(_: Message) -> tuple[bytes, str]:
    """Write an empty body."""
    return b"", JSON


def html_page(_: Message) -> tuple[bytes, str]:
    """Write the error page of a web server that stands before K-Pay."""
    return b"<html><head><title>Error</title></head><body><h1>Server Error</h1><hr>nginx</body></html>\n", HTML
