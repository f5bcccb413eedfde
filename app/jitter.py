"""Chance, in one place: what was made together must not come due together."""

import random


def jitter() -> float:
    """Return a factor between 0.9 and 1.1."""
    return random.uniform(0.9, 1.1)  # noqa: S311 - no secret hangs on it
