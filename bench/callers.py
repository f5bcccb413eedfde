"""The load of a chaos run: callers who do as the docs tell them, others who do not, and liars.

Every request is noted with its answer, or with none: what the check of the history is about.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx2

from app.macs import RETURL, Macs
from app.orders import derived_refid
from bench.history import Call, reply_of
from tests.support import SECRET_KEY, payment

CLIENT = "chaos"
CALLERS = 12

ORDINARY = ("000", "001", "005", "007", "010", "015")
UNDECIDED = ("005",)
FALSE = ("015",)
"""K-Pay itself says "paid" in a postback and does not mean it."""
LATE = ("021", "042")
"""Paid after a final refusal: K-Pay alone can tell, and does until it is heard."""
ODD = (
    *("002", "003", "004", "006", "008", "011", "012", "013", "014", "016", "017", "018", "019", "020", "022", "023"),
    *("024", "025", "030", "031", "032", "033", "034", "035", "036", "037", "038", "039", "040", "041", "043", "044"),
    *("048", "049", "050", "051", "052", "053", "054"),
)
"""What payers and K-Pay do besides; all but the refusals of this service itself (045 to 047)."""

_UNPAID = {*("001", "002", "003", "004", "023", "031", "033", "035", "040", "041", "048", "049", "050", "051"), *FALSE}

_ANSWER = 6.0
"""How long a caller waits for one answer."""
_LAST_ANSWER = 60.0
"""How long the last answers may take when all faults are over."""
_PATIENCE = (1, 3, 1000, 1000)
"""How often a caller who got no answer asks again."""


class Callers:
    """The load: callers who do as the docs tell them, and others who do not."""

    def __init__(self, fronts: Sequence[str], key: str, simulator: str, seed: int) -> None:
        self.calls: list[Call] = []
        self.answers: Counter[str] = Counter()
        self._fronts = fronts
        self._key = key
        self._simulator = simulator
        self._chance = random.Random(f"callers {seed}")  # noqa: S311 - it must come again
        self._refids: list[str] = []
        self._unpaid: list[str] = []
        self._over = False
        self._http = httpx2.AsyncClient(trust_env=False, timeout=_ANSWER)

    async def run(self, seconds: float) -> None:
        """Call for so long, then let everybody have the answer to the last start."""
        async with self._http:
            callers = [asyncio.create_task(self._call_on()) for _ in range(CALLERS)]
            await asyncio.sleep(seconds)
            self._over = True
            async with asyncio.timeout(_LAST_ANSWER):
                await asyncio.gather(*callers)

    async def _call_on(self) -> None:
        acts = (self._start, self._read, self._check, self._list, self._forge, self._tell, self._lie)
        while not self._over:
            (act,) = self._chance.choices(acts, (35, 20, 8, 8, 6, 11, 12))
            if self._refids or act == self._start:
                await act()
            await asyncio.sleep(self._chance.uniform(0.02, 0.2))

    async def _call(self, kind: str, refid: str, method: str, path: str, **request: Any) -> tuple[Call, Any]:  # noqa: ANN401 - httpx2's own, and JSON
        url = f"{self._chance.choice(self._fronts)}{path}"
        headers = {"Authorization": f"Bearer {self._key}"} | request.pop("headers", {})
        began, status, content = time.monotonic(), None, b""
        found: dict[str, Any] = {}
        with contextlib.suppress(httpx2.HTTPError, TimeoutError):
            async with asyncio.timeout(_ANSWER):  # httpx2's own time-out is per read: an answer may dribble for an hour
                answer = await self._http.request(method, url, headers=headers, **request)
            status, content = answer.status_code, answer.content
            found = answer.json() if answer.is_success and kind not in ("postback", "forged") else {}
        saw = {each["refid"]: each["status"] for each in found.get("items", [found] if found else [])}
        body = request.get("content", b"")
        call = Call(kind, refid, began, time.monotonic(), status, saw, body, reply_of(content))
        self.calls.append(call)
        self.answers[f"{kind} {status or 'no answer'}"] += 1
        return call, found

    def _one(self) -> str:
        return self._chance.choice(self._refids[-100:])

    async def _start(self) -> None:
        """Start a payment, again and again until it is answered; some give up before."""
        chance = self._chance
        key = f"{chance.getrandbits(80):020x}"
        number = chance.choice(chance.choice((ORDINARY, (*ODD, *LATE))))
        by_key, patience, orderid = chance.choice((True, False)), chance.choice(_PATIENCE), chance.choice((key, None))
        refid = derived_refid(CLIENT, key) if by_key else key
        body = payment(f"250780000{number}", refid=None if by_key else refid, orderid=orderid)
        headers = {"Idempotency-Key": key} if by_key else {}
        self._refids.append(refid)
        if number in _UNPAID:
            self._unpaid.append(refid)
        for _ in range(patience):
            call, _ = await self._call("start", refid, "POST", "/v1/payments", json=body, headers=headers)
            if call.saw:
                return
            await asyncio.sleep(chance.uniform(0.1, 1.0))

    async def _read(self) -> None:
        refid = self._one()
        await self._call("read", refid, "GET", f"/v1/payments/{refid}?wait={self._chance.choice([0, 0, 1])}")

    async def _check(self) -> None:
        refid = self._one()
        await self._call("check", refid, "POST", f"/v1/payments/{refid}/check")

    async def _list(self) -> None:
        await self._call("list", "", "GET", "/v1/payments?limit=50")

    async def _post(self, kind: str, refid: str, mac: str, body: bytes, content_type: str = "application/json") -> None:
        headers = {"Content-Type": content_type}
        await self._call(kind, refid, "POST", f"/kpay/returl/{refid}/{mac}", content=body, headers=headers)

    async def _forge(self) -> None:
        """Say "paid" by a path that was made up."""
        refid = self._one()
        await self._post("forged", refid, Macs(["f" * 40]).make(RETURL, refid), self._words(refid))

    async def _lie(self) -> None:
        """Say "paid" of what will not be, by the true path, as whoever has seen it can."""
        refid = self._chance.choice(self._unpaid[-20:] or self._refids)
        await self._post("postback", refid, Macs([SECRET_KEY]).make(RETURL, refid), self._words(refid))

    def _words(self, refid: str) -> bytes:
        receipt = self._chance.randrange(10**12)
        return f'{{"tid": "", "refid": "{refid}", "momtransactionid": "{receipt}", "statusid": "01"}}'.encode()

    async def _tell(self) -> None:
        """Say again what K-Pay has said, or tried to."""
        refid = self._one()
        with contextlib.suppress(httpx2.HTTPError):
            known = await self._http.get(f"{self._simulator}/_simulator/payments/{refid}")
            if said := known.json().get("postbacks"):
                said = self._chance.choice(said)
                mac = Macs([SECRET_KEY]).make(RETURL, refid)
                await self._post("postback", refid, mac, said["body"].encode(), said["content_type"])
