"""Anything K-Pay says that this service has never seen is counted and logged once (docs/rules.md, 10)."""

import structlog

from app import metrics
from app.kpay import codes
from app.kpay.discreet import UNDERSTOOD
from app.kpay.wire import Message

log = structlog.get_logger()

MOST_REMEMBERED = 1_000

_CONTENT_TYPES = (
    "",
    "application/json",
    "text/json",
    "text/plain",
    "text/html",
    "application/x-www-form-urlencoded",
    UNDERSTOOD,
    "multipart/form-data",
)


class Unseen:
    """What was new to this process. The log has each thing once; `counts`, on open pages, has the kinds only."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._seen: set[tuple[str, str]] = set()

    def note(self, kind: str, what: str) -> None:
        """Count one thing never seen; log it the first time."""
        metrics.GATEWAY_UNSEEN.labels(kind).inc()
        self.counts[kind] = self.counts.get(kind, 0) + 1
        key = (kind, what[:60])
        if key not in self._seen and len(self._seen) < MOST_REMEMBERED:
            log.warning("K-Pay said something never seen", kind=kind, what=key[1])
            self._seen.add(key)

    def look(self, message: Message | None, content_type: str) -> None:
        """Note what is new in a message and about the way it came."""
        bare = content_type.split(";", maxsplit=1)[0].strip().lower()
        if bare not in _CONTENT_TYPES:
            self.note("content_type", bare)
        if message is None:
            self.note("unreadable", bare)
            return
        for member in message.unseen:
            self.note("member", member)
        for kind, code in (("retcode", message.retcode), ("statusid", message.statusid)):
            if code is not None and code not in codes.KNOWN:
                self.note(kind, code)
