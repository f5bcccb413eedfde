"""What this process tells itself at once. Other processes find the same out by looking: a bell only saves time."""

import asyncio
from collections import defaultdict


class Bell:
    """Rings when a check has become due and when a payment has changed; nothing rests on its being heard."""

    def __init__(self) -> None:
        self._due = asyncio.Event()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def ring_due(self) -> None:
        """Tell the worker of this process that something is due now."""
        self._due.set()

    async def due_within(self, seconds: float) -> None:
        """Return when something is due, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._due.wait()
        except TimeoutError:
            return
        self._due.clear()

    def ring_changed(self, refid: str) -> None:
        """Tell whoever waits for `refid` in this process that it has changed."""
        for event in self._waiting.get(refid, ()):
            event.set()

    async def changed_within(self, refid: str, seconds: float) -> None:
        """Return when `refid` has changed, or after `seconds`."""
        event = asyncio.Event()
        self._waiting[refid].add(event)
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting[refid].discard(event)
            if not self._waiting[refid]:
                del self._waiting[refid]
