"""Guesses: who sends wrong keys, and how many.

A key has 256 random bits: the limit spares the database, not the key.
"""

import asyncio
import time
from ipaddress import IPv6Address, ip_address

from cachetools import TTLCache

MOST = 100
SECONDS = 60.0
_ADDRESSES = 10_000


class Guesses:
    """Wrong keys by address in the last minute, in memory of bounded size. An IPv6 address counts by its /64."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        """Whose turn it is: of addresses that have guessed too often, one key at a time is looked up."""
        self._wrong: TTLCache[str, list[int]] = TTLCache(_ADDRESSES, SECONDS, time.monotonic)

    def note(self, address: str) -> None:
        """Count one wrong key."""
        # In a list, so that counting does not begin the minute anew.
        self._wrong.setdefault(_whose(address), [0])[0] += 1

    def too_many(self, address: str) -> bool:
        """Whether this address has had its share."""
        return self._wrong.get(_whose(address), [0])[0] >= MOST


def _whose(address: str) -> str:
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    return str(int(ip) >> 64) if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None else str(ip)
