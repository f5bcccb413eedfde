"""The demo: plays payments through the real HTTP loop and judges how they ended against K-Pay's own ledger."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2

WAIT = 30
"""Seconds a payment may take to end."""

_SHOP = "https://shop.example.rw/done"
_CARD = {"number": "5555 5555 5555 4444", "expiry": f"12/{datetime.now(UTC).year + 1}", "cvv": "123"}
_LONGEST_WAY = 5


def _by_phone(_: "Stage") -> Mapping[str, str]:
    return {"pmethod": "momo"}


@dataclass(frozen=True, slots=True)
class Scene:
    """One payment: whose number it is (the simulator's magic), and how it must end."""

    title: str
    number: str
    status: str
    play: "Callable[[Stage, str], str]"
    statusid: str = "01"
    """What K-Pay's ledger must say."""
    paying: "Callable[[Stage], Mapping[str, str]]" = _by_phone
    """What says how it is paid; it is made before the payment is started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one scene ended; `detail` tells in a line what was seen."""

    title: str
    refid: str
    ok: bool
    detail: str


class Stage:
    """A running service and its simulator."""

    def __init__(self, url: str, simulator_url: str, key: str) -> None:
        self.service = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=WAIT + 10
        )
        self.simulator = httpx2.Client(base_url=simulator_url, trust_env=False, timeout=10)
        self._url = url

    def start(self, number: str, paying: Mapping[str, str]) -> str:
        """Start a payment of 4,200 RWF and return its refid."""
        answer = self.service.post(
            "/v1/payments",
            json={
                **paying,
                "amount": 4200,
                "msisdn": number,
                "email": "ikaneza@example.rw",
                "details": "order 1042",
                "cname": "KANEZA",
                "redirecturl": _SHOP,
            },
        )
        return str(answer.raise_for_status().json()["refid"])

    def wait(self, refid: str, seconds: float = WAIT) -> dict[str, object]:
        """Return the payment when it is final or the time is up."""
        answer = self.service.get(f"/v1/payments/{refid}", params={"wait": seconds})
        payment: dict[str, object] = answer.raise_for_status().json()
        return payment

    def sources(self, refid: str) -> list[str]:
        """Return who said something about the payment, in order."""
        events = self.service.get(f"/v1/payments/{refid}/events").raise_for_status().json()["items"]
        return [event["source"] for event in events]

    def forge(self, refid: str) -> int:
        """Send the listener a postback that K-Pay never made; return the HTTP status of the answer."""
        forged = {"tid": "A1", "refid": refid, "momtransactionid": "1", "statusid": "01", "statusdesc": "SUCCESSFUL"}
        return httpx2.post(f"{self._url}/kpay/returl/{refid}/{'x' * 27}", json=forged, trust_env=False).status_code

    def card_typed(self, page: str) -> str:
        """Type a test card into one of K-Pay's pages, and return where a browser is sent in the end."""
        with httpx2.Client(trust_env=False, timeout=WAIT) as browser:
            answer = browser.post(page, data={**_CARD, "do": "pay"})
            for _ in range(_LONGEST_WAY):
                if not answer.has_redirect_location:
                    break
                url = urljoin(str(answer.url), answer.headers["location"])
                if url.startswith(_SHOP):
                    return url
                answer = browser.get(url)
        return str(answer.url)

    def saved_card(self, number: str) -> str:
        """Save a card for a payer, and return the token that K-Pay lists for it."""
        payer = {"msisdn": number, "email": "ikaneza@example.rw", "cusname": "KANEZA"}
        self.card_typed(self.service.post("/v1/tokens", json=payer).raise_for_status().json()["url"])
        listed = self.service.get("/v1/tokens", params={"msisdn": number}).raise_for_status().json()["items"]
        return str(listed[-1]["token"])

    def ledger(self, refid: str) -> dict[str, object]:
        """Return what K-Pay itself knows of the payment."""
        entry: dict[str, object] = self.simulator.get(f"/_simulator/payments/{refid}").raise_for_status().json()
        return entry


def _plain(stage: Stage, refid: str) -> str:
    payment = stage.wait(refid)
    failure = payment["failure"]
    return f"{failure['code']}: {failure['detail']}" if isinstance(failure, dict) else f"tid {payment['tid']}"


def _lost(stage: Stage, refid: str) -> str:
    stage.wait(refid)
    came = "postback" in stage.sources(refid)
    return "a postback came after all" if came else "no postback came; checkstatus found it"


def _forged(stage: Stage, refid: str) -> str:
    status = stage.forge(refid)
    stage.wait(refid, 2)
    return f"the listener answered {status} and kept nothing" if status == httpx2.codes.NOT_FOUND else f"HTTP {status}!"


def _lied(stage: Stage, refid: str) -> str:
    stage.wait(refid, 4)
    came = "postback" in stage.sources(refid)
    return "the postback said paid, checkstatus said pending" if came else "the postback did not come"


def _at_checkout(stage: Stage, refid: str) -> str:
    url = stage.card_typed(str(stage.wait(refid, 0)["checkout_url"]))
    said = parse_qs(urlsplit(url).query)
    back = url.startswith(_SHOP) and said.get("refid") == [refid]
    return f"back at the shop with status={said.get('status', ['?'])[0]}" if back else f"the browser is at {url}!"


def _by_card(_: Stage) -> Mapping[str, str]:
    return {"pmethod": "cc"}


def _by_saved_card(stage: Stage) -> Mapping[str, str]:
    return {"pmethod": "cc", "token": stage.saved_card(_CARD_HOLDER), "cvv": _CARD["cvv"]}


_CARD_HOLDER = "250788312934"

SCENES = (
    Scene("a payer pays", "250780000000", "succeeded", _plain),
    Scene("a payer has too little money", "250780000002", "failed", _plain, "02"),
    Scene("the postback gets lost", "250780000010", "succeeded", _lost),
    Scene("a forged postback", "250780000005", "pending", _forged, "03"),
    Scene("a postback that lies", "250780000015", "pending", _lied, "03"),
    Scene("K-Pay's answer gets lost", "250780000032", "succeeded", _plain),
    Scene("a card at K-Pay's checkout", _CARD_HOLDER, "succeeded", _at_checkout, paying=_by_card),
    Scene("a saved card", _CARD_HOLDER, "succeeded", _plain, paying=_by_saved_card),
)

_BAD_SIGNS = ("after all", "!", "did not come")


def play(stage: Stage) -> Iterator[Outcome]:
    """Play every scene and judge it: the status, K-Pay's ledger, and that K-Pay was asked for the money once."""
    started = [(scene, stage.start(scene.number, scene.paying(stage))) for scene in SCENES]
    for scene, refid in started:
        seen = scene.play(stage, refid)
        payment, entry = stage.wait(refid, 0), stage.ledger(refid)
        said = f"{payment['status']}; {seen}; K-Pay says {entry['statusid']}, and got {entry['requests']} request"
        ended = (payment["status"], entry["statusid"], entry["requests"]) == (scene.status, scene.statusid, 1)
        yield Outcome(scene.title, refid, ended and not seen.endswith(_BAD_SIGNS), said)
