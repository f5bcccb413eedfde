"""A breaker: holds checks back from a gateway that is down or refuses us, and lets one through now and then."""

from dataclasses import dataclass, field

from app import metrics
from app.jitter import jitter

FAILURES = 5
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

_REFUSALS = frozenset({401, 403})
_ILL = 500


@dataclass(slots=True)
class Breaker:
    """Closed until `FAILURES` failures in a row, or one refusal of ourselves; then one probe after each longer pause.

    Time is an argument, in seconds of any steady clock. One breaker serves one process; replicas learn separately.
    """

    failures: int = 0
    pause: float = 0.0
    until: float = 0.0
    reason: str = ""
    probing: bool = field(default=False, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether checks are held back."""
        return self.pause > 0

    def room(self, now: float, wanted: int) -> int:
        """Return how many of `wanted` calls may go out now: all of them, one probe, or none."""
        if not self.is_open:
            return wanted
        return min(wanted, 1) if now >= self.until and not self.probing else 0

    def begun(self) -> None:
        """Note that a call has gone out."""
        self.probing = self.is_open

    def succeeded(self) -> None:
        """Note an answer: K-Pay is there and talks to us."""
        self.failures, self.pause, self.reason, self.probing = 0, 0.0, "", False
        metrics.BREAKER_OPEN.set(0)

    def judge(self, now: float, http_status: int, reason: str, *, refuses_us: bool) -> None:
        """Note an answer that did not answer: it refuses us, K-Pay is ill (5xx), or one question was the trouble."""
        if refuses_us or http_status in _REFUSALS:
            self.failed(now, reason, at_once=True)
        elif http_status >= _ILL:
            self.failed(now, reason)
        else:
            self.undecided()

    def undecided(self) -> None:
        """Note an answer that tells nothing of K-Pay's health: one question that it could not make sense of."""
        self.probing = False

    def failed(self, now: float, reason: str, *, at_once: bool = False) -> None:
        """Note a call without a usable answer; `at_once` opens the breaker without waiting for more of them."""
        self.failures += 1
        self.probing = False
        if self.is_open and now < self.until:
            return  # one of those that were under way when it opened
        if at_once or self.is_open or self.failures >= FAILURES:
            self.pause = min(self.pause * 2, LONGEST_PAUSE) if self.is_open else FIRST_PAUSE
            self.until = now + self.pause * jitter()
            self.reason = reason
            metrics.BREAKER_OPEN.set(1)
