"""Saved cards: K-Pay keeps them, and this service asks, passes the answer on and forgets it. Nothing is written."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from app.intake import may_send_payers_to
from app.kpay import cards, request
from app.kpay.client import Answer, KPay
from app.kpay.unseen import Unseen
from app.orders import new_refid

log = structlog.get_logger()


class TokenRefused(Exception):  # noqa: N818 - the name says what it is
    """K-Pay answered and did not do it: what it said, and its code where it gave one."""

    def __init__(self, refusal: cards.Refusal) -> None:
        super().__init__(refusal.detail)
        self.retcode = refusal.retcode


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page at K-Pay where a payer saves a card, and the refid that it was asked for under."""

    refid: str
    tid: str | None
    url: str


class Tokens:
    """Asks one gateway about saved cards. Both calls raise `TokenRefused`, `NotSent` or `InDoubt`.

    How they fare says nothing of checks and payments (an account may have no saved cards): no breaker hears of it.
    """

    def __init__(
        self,
        *,
        kpay: KPay,
        merchant: request.Merchant,
        checkout_hosts: frozenset[str],
        unseen: Unseen,
    ) -> None:
        self._kpay = kpay
        self._merchant = merchant
        self._checkout_hosts = checkout_hosts
        self._unseen = unseen

    async def add(self, msisdn: str, email: str, cusname: str) -> TokenPage:
        """Return a page where the payer saves a card; asked twice there are two pages, which does no harm."""
        refid = new_refid()
        asked = request.addtoken(refid, msisdn, email, cusname, self._merchant)
        answer = await self._ask(self._kpay.addtoken, asked)
        page = cards.of_addtoken(answer.message, answer.http_status)
        if isinstance(page, cards.Page) and not may_send_payers_to(page.url, self._checkout_hosts):
            log.error("K-Pay's token url is on a host that KPAYD_CHECKOUT_HOSTS does not name", refid=refid)
            page = cards.Refusal("K-Pay named a page on a host that is not allowed here")
        if isinstance(page, cards.Refusal):
            raise self._refused(page, answer)
        return TokenPage(refid, page.tid, page.url)

    async def saved(self, msisdn: str) -> Sequence[cards.Card]:
        """Return the cards that K-Pay keeps for a payer."""
        answer = await self._ask(self._kpay.tokenlist, request.tokenlist(new_refid(), msisdn, self._merchant))
        found = cards.of_tokenlist(answer.message, answer.http_status)
        if isinstance(found, cards.Refusal):
            raise self._refused(found, answer)
        return found

    async def _ask(self, call: Callable[[Mapping[str, Any]], Awaitable[Answer]], asked: Mapping[str, Any]) -> Answer:
        answer = await call(asked)
        self._unseen.look(answer.message, answer.content_type)
        return answer

    def _refused(self, refusal: cards.Refusal, answer: Answer) -> TokenRefused:
        log.error("K-Pay refuses a call about saved cards", http_status=answer.http_status, retcode=refusal.retcode)
        return TokenRefused(refusal)
