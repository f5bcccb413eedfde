"""The pages that a payer's browser sees: self-contained HTML under a strict Content-Security-Policy.

Style and script stand in the page itself, known to the browser by their hashes: one request, no third party.
"""

import base64
import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.api.words import Words
from app.models import Row

WAY_ON_SECONDS = 30
"""After so long a payer is offered a way on, whatever has become of the payment."""
REFRESH_SECONDS = 5

_HERE = Path(__file__).parent
_TEMPLATE = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
).get_template("payer.html")
_STYLE = (_HERE / "payer.css").read_text()
_SCRIPT = (_HERE / "payer.js").read_text()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the mac in the path is nobody else's
    "Vary": "Accept-Language",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a payer is shown of a payment, and nothing else of it; `way_on` is where they may go meanwhile."""

    amount: str
    merchant: str
    way_on: str
    waited: int

    @property
    def seconds_left(self) -> int:
        """In how many seconds the way on is offered."""
        return max(0, WAY_ON_SECONDS - self.waited)

    @classmethod
    def of(cls, row: Row, words: Words, *, merchant: str, way_on: str, waited: int) -> "Shown":
        """Return what is shown to a payer who has waited for so many seconds."""
        amount = f"{row.amount:,}".replace(",", words.thousands)
        return cls(f"{amount}\u00a0{row.currency}", merchant, way_on, waited)


def waiting(shown: Shown, words: Words) -> HTMLResponse:
    """Return the page of a payment that is not over; it looks again by itself, without a script, too."""
    refresh = f"{REFRESH_SECONDS}; url=?waited={shown.waited + REFRESH_SECONDS}"
    return _page(words, words.waiting, (words.approve, words.goes_on), payment=shown, refresh=refresh, script=True)


def not_valid(words: Words) -> HTMLResponse:
    """Return the page of a link that leads to no payment."""
    return _page(words, words.not_valid, (words.see_merchant,), status=HTTPStatus.NOT_FOUND)


def over(words: Words) -> HTMLResponse:
    """Return the page of a payment so long over that its way on is not known any more."""
    return _page(words, words.over, (words.see_merchant,), status=HTTPStatus.GONE)


def busy(words: Words) -> HTMLResponse:
    """Return the page of a service that cannot look just now; it tries again."""
    page = _page(
        words,
        words.moment,
        (words.nothing_lost,),
        refresh=str(REFRESH_SECONDS),
        status=HTTPStatus.SERVICE_UNAVAILABLE,
    )
    page.headers["Retry-After"] = str(REFRESH_SECONDS)
    return page


def _page(
    words: Words,
    title: str,
    lines: tuple[str, ...],
    *,
    payment: Shown | None = None,
    refresh: str = "",
    script: bool = False,
    status: int = HTTPStatus.OK,
) -> HTMLResponse:
    merchant = payment.merchant if payment else ""
    text = _TEMPLATE.render(
        words=words,
        later=words.later.format(merchant=merchant),
        go_on=words.go_on.format(merchant=merchant),
        title=title,
        lines=lines,
        payment=payment,
        refresh=refresh,
        style=Markup(_STYLE),  # noqa: S704 - our own file
        script=Markup(_SCRIPT) if script else "",  # noqa: S704 - our own file
    )
    return HTMLResponse(text, status, {**_HEADERS, "Content-Language": words.language})
