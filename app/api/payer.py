"""The payer's way back: from K-Pay's page by way of this service to the merchant's.

Whoever holds the link (it has a mac of its own) may ask for a check and see amount and merchant; nothing that a
browser sends changes a payment.
"""

import asyncio
from contextlib import suppress
from urllib.parse import unquote_plus, urlsplit, urlunsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from fastapi.sse import format_sse_event

from app import metrics
from app.api import pages
from app.api.context import Context, parts_of
from app.api.stream import HEARTBEAT, Put, Stream, come_back
from app.api.words import Words, asked_for
from app.bell import Ring, of_payment
from app.database import UNAVAILABLE
from app.domain import FINAL
from app.macs import RETURN
from app.models import Row

PREFIX = f"/kpay/{RETURN}/"
PATH = PREFIX + "{refid}/{mac}"
NEWS = "/news"
NEWS_PATH = PATH + NEWS

_ANSWER_SECONDS = 2.0
"""How long a payer looks at nothing while K-Pay is asked; then the page waits for the answer."""
_ASK_AGAIN = 2.0
"""Seconds between two questions that arriving can bring about."""
_ASK_EVERY = 5.0
"""Seconds between two questions of an open page."""
_ARRIVALS, _QUESTIONS = 200, 20
"""Into so many parts a payment's age is cut: no two arrivals, or questions of its page, ask in less than one."""
_NEWS_SECONDS = 600.0
"""How long one stream of news lives; a browser comes back by itself."""
_LONGEST_WAIT = 86_400


async def way_back(request: Request) -> Response:
    """Send the payer's browser on where the payment is final (303), else show a page that waits.

    Arriving has K-Pay asked, unless it was just now. A browser that was sent here by POST comes again by GET.
    """
    answer, response = await _answer(request, _words(request))
    metrics.PAYERS.labels(answer).inc()
    return response


def busy(request: Request) -> Response:
    """Return the answer to a payer who is turned away: a page that comes again."""
    return pages.busy(_words(request))


async def _answer(request: Request, words: Words) -> tuple[str, Response]:
    parts = parts_of(request)
    refid = _authentic_refid(request, parts)
    if refid is None:
        return "wrong_mac", pages.not_valid(words)
    if request.method == "POST":
        return "post", _see_other(f"./{request.path_params['mac']}")  # relative: a proxy may have taken a prefix away
    try:
        row = await _look(parts, refid)
    except UNAVAILABLE:
        return "unavailable", pages.busy(words)
    return ("unknown", pages.not_valid(words)) if row is None else _about(row, request, words)


def _about(row: Row, request: Request, words: Words) -> tuple[str, Response]:
    if not row.redirecturl:  # its personal data was taken out (app.retention)
        return "over", pages.over(words)
    if row.status in FINAL:
        return "sent_on", _see_other(way_on(row))
    merchant = parts_of(request).settings.merchant_name or urlsplit(row.redirecturl).hostname or ""
    shown = pages.Shown.of(row, words, merchant=merchant, way_on=way_on(row), waited=_waited(request))
    return "waiting", pages.waiting(shown, words)


async def news(request: Request) -> Response:
    """Stream one event, `final`, when the payment is; nothing of it is told here."""
    parts = parts_of(request)
    refid = _authentic_refid(request, parts)
    if refid is None:
        return pages.not_valid(_words(request))
    return News(parts, refid) if request.method == "GET" else Response(media_type=News.media_type)


class News(Stream):
    """Tells a waiting page that there is somewhere to go, and has K-Pay asked now and then meanwhile."""

    def __init__(self, parts: Context, refid: str) -> None:
        super().__init__(parts, of_payment(refid))
        self._refid = refid

    async def send_all(self, put: Put, rung: Ring, leaving: asyncio.Task[None]) -> None:
        """Put a heartbeat every few seconds, and the one event."""
        await put(come_back())
        clock = asyncio.get_running_loop().time
        until = clock() + _NEWS_SECONDS
        while not leaving.done() and not self._parts.stopping.is_set() and clock() < until:
            with suppress(*UNAVAILABLE):  # looked at again after the heartbeat
                row = await self._parts.lookup.one(self._refid)
                if row is None or row.status in FINAL:
                    await put(format_sse_event(event="final", data_str=""))
                    return
                async with asyncio.timeout(_ANSWER_SECONDS):  # the question goes on, and rings when it is answered
                    await self._parts.reconciler.look(row, max(_ASK_EVERY, _age(row) / _QUESTIONS))
            await put(HEARTBEAT)
            await rung.within(_ASK_EVERY)


def way_on(row: Row) -> str:
    """Return the caller's `redirecturl` with `refid` and `status` in its query, in place of any that stood there.

    All the rest of it is as the caller wrote it.
    """
    parts = urlsplit(str(row.redirecturl))
    ours = ("refid", "status")
    kept = [pair for pair in parts.query.split("&") if pair and unquote_plus(pair.partition("=")[0]) not in ours]
    query = "&".join([*kept, f"refid={row.refid}", f"status={row.status}"])
    return urlunsplit(parts._replace(query=query))


async def _look(parts: Context, refid: str) -> Row | None:
    """Return the payment after K-Pay was asked, where that brings an answer in time."""
    with parts.bell.listen(of_payment(refid)) as changed:
        row = await parts.lookup.one(refid)
        if row is None or not row.redirecturl:
            return row
        with suppress(TimeoutError):  # the question goes on; the page hears of its answer
            async with asyncio.timeout(_ANSWER_SECONDS):
                await parts.reconciler.look(row, max(_ASK_AGAIN, _age(row) / _ARRIVALS))
                row = await parts.lookup.one(refid) or row
                while row.status not in FINAL and _is_being_asked(row) and not parts.reconciler.breaker.is_open:
                    await changed.within(_ANSWER_SECONDS)
                    row = await parts.lookup.one(refid) or row
        return row


def _words(request: Request) -> Words:
    return asked_for(request.headers.get("accept-language", ""))


def _is_being_asked(row: Row) -> bool:
    """Whether another process is asking K-Pay, or a postback has just asked for that."""
    is_leased = row.leased_until is not None and row.leased_until > row.now
    return bool(is_leased or row.wake_step == 0)


def _authentic_refid(request: Request, parts: Context) -> str | None:
    refid: str = request.path_params["refid"]
    return refid if parts.macs.verify(RETURN, refid, request.path_params["mac"]) else None


def _see_other(url: str) -> Response:
    headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return RedirectResponse(url, 303, headers)


def _age(row: Row) -> float:
    seconds: float = (row.now - row.created_at).total_seconds()
    return seconds


def _waited(request: Request) -> int:
    """Return how long a page without a script says that it has waited: it decides when the way on is shown."""
    value = request.query_params.get("waited", "")
    return min(int(value), _LONGEST_WAIT) if value.isdecimal() and len(value) < 7 else 0  # noqa: PLR2004 - days
