"""Events sent to a receiver that is being written, as the service itself would notify it."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app import __version__
from app.addresses import Allowed, parse
from app.egress import Egress, NotDelivered, connect
from app.notify import outcome, sign
from app.receivers import Receiver

_ANSWER_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Sent:
    """How a receiver took one event: well where there is no `why`."""

    http_status: int | None
    why: str | None
    seconds: float


class Forwarder:
    """Sends events to one receiver, one after the other, each once and as a notification."""

    def __init__(self, egress: Egress, url: str, secret: str) -> None:
        self.url = url
        self.secret = secret
        self._egress = egress
        self._receiver = Receiver("", url, [secret], 0)

    async def send(self, event: Mapping[str, Any]) -> Sent:
        """Send one event: the very body and headers of its notification."""
        told = {name: event[name] for name in ("type", "timestamp", "data")}
        body = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        headers = sign(self._receiver, event["id"], datetime.now(UTC), body)
        headers |= {"Content-Type": "application/json", "User-Agent": f"kpayd/{__version__}"}
        began = time.monotonic()
        try:
            took = outcome(await self._egress.post(self.url, headers, body.encode()))
        except NotDelivered as exc:
            return Sent(None, str(exc), time.monotonic() - began)
        return Sent(took.said, took.why, time.monotonic() - began)


@asynccontextmanager
async def forwarder(url: str, secret: str) -> AsyncIterator[Forwarder]:
    """Yield a forwarder to `url`, which `receiver_url` has returned."""
    receiver = Allowed.of([parse(url).host.decode()])
    async with connect(receiver, timeout=_ANSWER_SECONDS) as egress:
        yield Forwarder(egress, url, secret)


def receiver_url(text: str) -> str:
    """Return where to forward to; `http://` may be left out. Raises `ValueError`, which says what would be right."""
    url = text if "://" in text else f"http://{text}"
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://, e.g. http://127.0.0.1:3000/hook")
    parse(url)
    return url
