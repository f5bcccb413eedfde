"""Load: how far behind this process is, so that it can turn callers away before it serves nobody.

Two queues tell: callbacks that wait for the event loop, and callers that wait for a database connection. A queue that
comes and goes is a burst and harmless; one that stands is overload (the idea of CoDel, RFC 8289).
"""

import asyncio
from collections import deque
from collections.abc import Callable

SAMPLE_SECONDS = 0.05
_SAMPLES = 3
_LAG_SECONDS = 0.25  # each request goes through the loop about ten times
_WAIT_SECONDS = 0.5


class Load:
    """How far behind this process is. `watch` must be running; `waiting` tells the seconds in line for a connection."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._waiting = waiting
        self._lags = deque([0.0] * _SAMPLES, _SAMPLES)

    @property
    def pressure(self) -> float:
        """0 where nothing waits; from 1 on what can wait should be turned away, from 2 on all that is new."""
        return max(min(self._lags) / _LAG_SECONDS, self._waiting() / _WAIT_SECONDS)

    async def watch(self) -> None:
        """Take samples until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self._lags.append(loop.time() - due)
