"""What K-Pay does not have: looking into its ledger, playing the payer by hand, and breaking the whole gateway."""

import json
from dataclasses import asdict, replace
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from app.simulator import wire
from app.simulator.behaviours import rows
from app.simulator.cards import ACCEPTED, DECLINING, NO_CVV
from app.simulator.codes import RETCODES, STATUSIDS
from app.simulator.gateway import Mood
from app.simulator.ledger import Ledger
from app.simulator.postbacks import Payer
from app.simulator.script import DECLINED, PAID, PENDING, Outcome, Post
from app.simulator.templating import page

_BY_HAND = {outcome.statusid: outcome for outcome in (PAID, DECLINED, PENDING)}
_WORDS = {str(code): words for code, words in RETCODES.items() if code} | STATUSIDS
_LONGEST = 3600.0
_COLUMNS: Final = ("refid", "tid", "momtransactionid", "amount", "msisdn", "statusid", "statusdesc", "behaviour")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LONGEST


def _never(_: object) -> bool:
    return False


_FITS = {"down": _is_flag, "refuse_credentials": _is_flag, "latency": _is_seconds, "payer_delay": _is_seconds}


class Control:
    """The endpoints under `/_simulator` and the page. Nobody is asked who they are: bind it to loopback."""

    def __init__(self, mood: Mood, ledger: Ledger, payer: Payer) -> None:
        self._mood = mood
        self._ledger = ledger
        self._payer = payer

    async def payments(self, _: Request) -> Response:
        """List the ledger, `{"items": [...], "not_recorded": {refid: requests}}`, oldest first."""
        return _json({"items": self._ledger.items(), "not_recorded": self._ledger.not_recorded()})

    async def payment(self, request: Request) -> Response:
        """Show one payment; 404, with the count of its requests, when it was not taken in."""
        refid = request.path_params["refid"]
        payment = self._ledger.by_refid(refid)
        if payment is None:
            return _json({"refid": refid, "requests": self._ledger.requests[refid]}, 404)
        return _json(self._ledger.show(payment))

    async def settle(self, request: Request) -> Response:
        """Play the payer: `{"statusid": "01", "statusdesc": "...", "postback": true}`; statusdesc may be left out.

        This ends what the magic number had in store: steps to come, retries and masks. With `postback` it answers
        after the postback was answered or given up.
        """
        payment = self._ledger.by_refid(request.path_params["refid"])
        if payment is None:
            return _json({"error": "no such payment"}, 404)
        match await _body(request):
            case {"statusid": str(statusid), **rest} if statusid:
                outcome = _BY_HAND.get(statusid, Outcome(statusid, _WORDS.get(statusid, "Unknown error")))
                outcome = replace(outcome, statusdesc=str(rest.get("statusdesc") or outcome.statusdesc))
            case _:
                return _json({"error": "statusid must be a text"}, 400)
        await self._payer.end(payment)
        payment.truth, payment.mask = outcome, None
        if rest.get("postback") is True:
            await self._payer.post(payment, Post())
        return _json(self._ledger.show(payment))

    async def behave(self, request: Request) -> Response:
        """Change the gateway's mood by `down`, `refuse_credentials`, `latency`, `payer_delay`; answer with all four.

        What is left out stays; a member that is unknown or of another type is 400 and changes nothing. A payer delay
        counts for payments that come in after it.
        """
        changes = await _body(request)
        for name, value in changes.items():
            if not _FITS.get(name, _never)(value):
                return _json({"error": f"cannot set {name}"}, 400)
        for name, value in changes.items():
            setattr(self._mood, name, value)
        return _json(asdict(self._mood))

    async def magic(self, _: Request) -> Response:
        """Give the table of magic numbers, `{"items": [...]}`."""
        return _json({"items": rows()})

    async def page(self, _: Request) -> Response:
        """Show the ledger, the magic numbers and the test cards on one plain page."""
        return page(
            "index",
            columns=_COLUMNS,
            payments=list(reversed(self._ledger.items())),
            pending=PENDING.statusid,
            magic=rows(),
            cards={"accepted": ACCEPTED, "declining": DECLINING, "no_cvv": NO_CVV},
        )


async def _body(request: Request) -> dict[str, object]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        return {"body": None}  # a member that fits nowhere
    return body if isinstance(body, dict) else {"body": None}


def _json(message: wire.Message, status: int = 200) -> Response:
    body, content_type = wire.as_json(message)
    return Response(body, status, {"Content-Type": content_type})
