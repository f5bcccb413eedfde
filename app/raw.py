"""Raw words: what K-Pay sent, byte for byte, before anybody made sense of it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from app.domain import Source
from app.kpay.client import Answer

OBSERVATION = "application/x-kpayd-observation"
"""The content type of what we noticed ourselves where K-Pay sent nothing (a time-out, a reset)."""


@dataclass(frozen=True)
class Raw:
    """One body with where it came from. The same source saying the same is the same evidence (docs/rules.md, 7)."""

    source: Source
    body: bytes
    content_type: str
    http_status: int | None = None
    remote: str | None = None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of source and body."""
        return hashlib.sha256(self.source.encode() + b"\0" + self.body).digest()

    @classmethod
    def observation(cls, source: Source, words: str) -> "Raw":
        """Return what we noticed ourselves, as evidence."""
        return cls(source, words.encode(), OBSERVATION)

    @classmethod
    def answer(cls, source: Source, answer: Answer) -> "Raw":
        """Return K-Pay's answer to a call of ours, as evidence."""
        return cls(source, answer.body, answer.content_type, http_status=answer.http_status)
