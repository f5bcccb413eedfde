"""Capabilities in a URL: an HMAC of a refid under the deployment's secret keys.

K-Pay signs nothing, so whoever knows a payment's `returl` may speak for K-Pay there. The path therefore carries a mac
that only this service can make. Each purpose has its own mac: what a payer's browser sees opens no other door.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence

RETURL = "returl"
"""K-Pay's way to the listener."""
RETURN = "return"
"""The payer's way back."""
NO_SUCH_RETURL = "no_such_returl"
"""The code of the answer to a wrong mac: what a doctor knows the listener by."""

_BYTES = 20  # 160 bits, 27 URL-safe characters


class Macs:
    """Makes macs with the first key and accepts those of all keys, so that a key can be rotated."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def make(self, purpose: str, refid: str) -> str:
        """Return the URL-safe mac of `refid` for `purpose`."""
        return self._mac(self._keys[0], purpose, refid)

    def verify(self, purpose: str, refid: str, mac: str) -> bool:
        """Whether `mac` was made for `purpose` and `refid` under any key, compared in constant time."""
        given = mac.encode("utf-8", "surrogatepass")
        matches = [hmac.compare_digest(self._mac(key, purpose, refid).encode(), given) for key in self._keys]
        return any(matches)

    def _mac(self, key: bytes, purpose: str, refid: str) -> str:
        digest = hmac.digest(key, f"{purpose}\0{refid}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:_BYTES]).rstrip(b"=").decode()
