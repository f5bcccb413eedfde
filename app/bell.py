"""What processes tell each other at once. Whoever hears nothing finds the same out by looking: a bell only saves time.

intake -> waiting calls and the publisher of every process -> couriers and streams of every process
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

DUE = "due"
"""A check has become due."""
OUTBOX = "outbox"
"""An event is not in its feed yet."""
_PAYMENT = "p:"
_FEED = "f:"

_MOST_UNSAID = 10_000
_LOOK_EVERY = 0.5
_LOOK_ANYWAY = 5.0


def of_payment(refid: str) -> str:
    """Return what rings when a payment has changed."""
    return _PAYMENT + refid


def of_feed(client: str) -> str:
    """Return what rings when a client's feed has grown."""
    return _FEED + client


class Ring:
    """One listener: remembers that it was rung until somebody has waited for it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Ring."""
        self._event.set()

    async def within(self, seconds: float) -> bool:
        """Return True when rung since the last wait, or False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Bell:
    """Rings in this process, and keeps for `app.herald` what the others are to hear."""

    def __init__(self) -> None:
        self._rings: defaultdict[str, set[Ring]] = defaultdict(set)
        self._unsaid: dict[str, None] = {}
        self.has_unsaid = asyncio.Event()
        self.hears_others = False
        """Whether what other processes announce arrives here."""

    @property
    def patience(self) -> float:
        """After how many seconds whoever waits should look all the same."""
        return _LOOK_ANYWAY if self.hears_others else _LOOK_EVERY

    @contextmanager
    def listen(self, name: str) -> Iterator[Ring]:
        """Yield a ring for `name`. Look after this and not before: what happens in between is heard."""
        ring = Ring()
        self._rings[name].add(ring)
        try:
            yield ring
        finally:
            self._rings[name].discard(ring)
            if not self._rings[name]:
                del self._rings[name]

    def ring(self, name: str) -> None:
        """Tell whoever listens in this process."""
        for ring in self._rings.get(name, ()):
            ring.ring()
        if name.startswith(_PAYMENT):
            self.ring(OUTBOX)

    def ring_all(self) -> None:
        """Tell everybody to look: something may have been missed, or this process is stopping."""
        for rings in self._rings.values():
            for ring in rings:
                ring.ring()

    def announce(self, name: str) -> None:
        """Tell whoever listens in any process."""
        self.ring(name)
        if len(self._unsaid) < _MOST_UNSAID:
            self._unsaid[name] = None
            self.has_unsaid.set()

    def take_unsaid(self) -> Sequence[str]:
        """Return what the other processes have not been told yet; it is the caller's to tell now."""
        unsaid = list(self._unsaid)
        self._unsaid.clear()
        self.has_unsaid.clear()
        return unsaid

    def listened_payments(self) -> Sequence[str]:
        """Return the refids that somebody waits for."""
        return self._names(_PAYMENT)

    def listened_feeds(self) -> Sequence[str]:
        """Return the clients whose feed somebody waits for."""
        return self._names(_FEED)

    def _names(self, kind: str) -> Sequence[str]:
        return [name.removeprefix(kind) for name in self._rings if name.startswith(kind)]
