"""Admission: how many calls of each kind are let in, so that what was begun is finished and the queues drain.

Nothing else is spent on a call that is turned away. Reads and payers go before starts, and a postback is never turned
away here.
"""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app import metrics
from app.api import payer
from app.api.context import parts_of
from app.api.problems import Problem
from app.kpay.client import MOST_PAYMENTS

MOST_READS = 256
"""Reads at once: more of them would only wait for each other."""
MOST_CHECKS = 256
MOST_WAITS = 4_000
"""Calls at once that wait for a payment to end: each costs some memory and nothing else."""
MOST_STREAMS = 5_000
MOST_PAYERS = 256
"""Payers at once who come back and wait for K-Pay's word, two seconds each at most."""
MOST_PAGES = 2_000
"""Waiting pages at once that are told when to go on; the others look by themselves."""


def overloaded() -> Problem:
    """Return the 503 of a call that is turned away: a new one each time, since one that is raised keeps its frames."""
    detail = "more calls come than can be served; nothing was done about this one; send it again"
    return Problem(503, "overloaded", detail, headers={"Retry-After": "1"})


_OVERLOADED = overloaded().response()
"""Made once: turning a call away must cost less than answering it."""


@dataclass(slots=True)
class _Kind:
    """Calls that are treated alike: up to which pressure, and how many at once, they are let in."""

    name: str
    pressure: float
    most: int
    under_way: int = 0


class Slot:
    """The place of one call among those of its kind."""

    def __init__(self, kind: _Kind, waits: _Kind) -> None:
        self._kind = kind
        self._waits = waits
        kind.under_way += 1

    def is_waiting(self) -> bool:
        """Make room for others of its kind, since it only waits from here on; False where too many wait already."""
        if self._waits.under_way >= self._waits.most:
            metrics.SHED.labels(self._waits.name).inc()
            return False
        self.leave()
        self._kind = self._waits
        self._kind.under_way += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self._kind.under_way -= 1


def slot_of(request: Request) -> Slot:
    """Return the place that `Admission` gave to `request`."""
    return cast("Slot", request.state.slot)


class Admission:
    """Answers 503 to calls while this process is behind, or has too many of their kind under way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._reads = _Kind("read", 1.0, MOST_READS)
        self._checks = _Kind("check", 1.0, MOST_CHECKS)
        self._waits = _Kind("wait", 1.0, MOST_WAITS)
        self._streams = _Kind("stream", 1.0, MOST_STREAMS)
        self._starts = _Kind("start", 2.0, MOST_PAYMENTS)
        self._payers = _Kind("payer", 1.0, MOST_PAYERS)
        self._pages = _Kind("page", 1.0, MOST_PAGES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        kind = self._kind(scope) if scope["type"] == "http" else None
        if kind is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if kind.under_way >= kind.most or parts_of(request).load.pressure >= kind.pressure:
            metrics.SHED.labels(kind.name).inc()
            is_payer = kind in (self._payers, self._pages)
            response = payer.busy(request) if is_payer else _OVERLOADED
            await response(scope, receive, send)
            return
        slot = request.state.slot = Slot(kind, self._waits)
        try:
            await self._app(scope, receive, send)
        finally:
            slot.leave()

    def _kind(self, scope: Scope) -> _Kind | None:
        path: str = scope["path"]
        if path.startswith(payer.PREFIX):
            return self._pages if path.endswith(payer.NEWS) else self._payers
        if not path.startswith("/v1/"):
            return None
        if scope["method"] == "POST":
            return self._starts if path == "/v1/payments" else self._checks
        if path == "/v1/tokens":
            return self._checks  # it asks K-Pay, too
        return self._streams if path == "/v1/events/stream" else self._reads
