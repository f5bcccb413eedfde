"""What K-Pay's answer to a `tokenpay` repeats of the card is taken out before anybody reads it or keeps it.

Nobody knows how an answer would repeat it: in words, in a page of HTML that shows the whole request, escaped. So its
bytes are kept only where no way of reading them brings the card back; else what was understood is kept in their place.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_plus

from app.kpay import codes
from app.kpay.wire import MAX_VALUE, Message, decode

UNDERSTOOD = "application/x-kpayd-understood+json"
"""The content type of a body in whose place stands what was understood of it."""

_BLOT = "***"
_WORDS = ("statusdesc", "reply", "url")
_CODES = ("statusid", "retcode")
_IDS = ("tid", "momtransactionid")
_DEPTH = 3
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)


def _unescaped(text: str) -> str:
    """Return `text` as JSON reads it inside a string; what stands for a control character becomes a space."""
    return _ESCAPE.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else " " if found[2].isalpha() else found[2], text
    )


_READINGS: tuple[Callable[[str], str], ...] = (_unescaped, unquote_plus, html.unescape)


class Card:
    """What must not be repeated: the token anywhere, the cvv, as text or as a number, where no digit stands beside it.

    An id often holds the digits by chance: it is dropped where it holds the token, or is the cvv.
    """

    def __init__(self, token: str, cvv: str) -> None:
        self._token = token
        self._longest = max(len(token), len(cvv))
        digits = f"{cvv}|{cvv.lstrip('0') or '0'}"
        self._pattern = re.compile(f"{re.escape(token)}|(?<![0-9])(?:{digits})(?![0-9])")

    def is_in(self, body: bytes, content_type: str) -> bool:
        """Whether some way of reading the body, or its content type, brings the card back."""
        texts = {decode(body), content_type}
        for _ in range(_DEPTH):
            if any(self._pattern.search(text) for text in texts):
                return True
            texts = {read(text) for text in texts for read in _READINGS}
        return any(self._pattern.search(text) for text in texts)

    def out_of(self, message: Message) -> Message:
        """Return the message without the card. A code of K-Pay's tables stays, though the cvv may equal it."""
        changes: dict[str, Any] = {name: self._blotted(getattr(message, name)) for name in _WORDS}
        for name in _CODES:
            said = getattr(message, name)
            changes[name] = said if said in codes.KNOWN else self._blotted(said)
        for name in _IDS:
            said = getattr(message, name)
            changes[name] = None if said and (self._token in said or self._pattern.fullmatch(said)) else said
        if message.payaccount and self._pattern.search(message.payaccount):
            changes["payaccount"] = None
        return replace(message, **changes, unseen=tuple(self._pattern.sub(_BLOT, name) for name in message.unseen))

    def _blotted(self, said: str | None) -> str | None:
        if said is None:
            return None
        blotted = self._pattern.sub(_BLOT, said)
        return blotted if len(said) < MAX_VALUE else blotted[: -self._longest]  # it was cut: within the token, perhaps


def understood(message: Message | None) -> bytes:
    """Return what was understood of an answer, as a body to keep in the place of its own."""
    names = (*_IDS, "payaccount", *_CODES, *_WORDS, "success")
    said = {name: getattr(message, name) for name in names if message is not None}
    return json.dumps({name: value for name, value in said.items() if value is not None}).encode()
