"""The client: asks K-Pay for money and for news, and brings back what it said.

One call is one POST with Basic authorization and one total deadline: httpx's own time-outs are per read, and an
answer that dribbles in never meets them. No redirect is followed, TLS is verified, no proxy is taken from the
environment. A body is read up to 64 KiB.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2
import stamina

from app import metrics
from app.kpay import discreet
from app.kpay.errors import GatewayError, InDoubt, NotSent
from app.kpay.wire import Message, read

MAX_BODY = 64 * 1024
CONNECT_ATTEMPTS = 3
MOST_PAYMENTS = 256
"""Payment requests at once, each with a connection of its own: whoever starts more would wait for nothing."""

_PLACES = 4
"""Connections of one httpx client: for each call it looks at all it has, which at 16 was a tenth of a check."""

_SHARES = 3
_CONNECT_SHARE = 0.25
_MAX_CONNECT_SECONDS = 5.0
# Shorter than any server's own idle limit that we know of: a request sent into a connection that is just being
# closed is in doubt for no good reason.
_IDLE_SECONDS = 2.0
_NOTHING_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


@dataclass(frozen=True, slots=True)
class Answer:
    """What K-Pay answered: the raw body (cut at 64 KiB) and, where it could be read, the message."""

    http_status: int
    content_type: str
    body: bytes
    message: Message | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where K-Pay is and who we are there."""

    url: str
    username: str
    password: str
    key: str = ""
    timeout: float = 30.0


class KPay:
    """K-Pay's API. Make it by `connect`, which closes its connections."""

    def __init__(self, places: list[httpx2.AsyncClient], endpoint: Endpoint, checks: int) -> None:
        self._places = places
        self._endpoint = endpoint
        # In line, so that however much is asked, payments have their connections.
        self._asking = asyncio.Semaphore(_SHARES * checks)
        self._asking_of_cards = asyncio.Semaphore(checks)

    async def pay(self, request: Mapping[str, Any]) -> Answer:
        """Send one payment request, once. Raises `NotSent` or `InDoubt`; only a failed connect is tried again."""
        deadline = time.monotonic() + self._endpoint.timeout
        async for attempt in stamina.retry_context(
            on=NotSent,
            attempts=CONNECT_ATTEMPTS,
            timeout=self._endpoint.timeout / 2,
            wait_initial=self._endpoint.timeout / 100,
            wait_max=self._endpoint.timeout / 20,
            wait_jitter=self._endpoint.timeout / 100,
        ):
            with attempt:
                return await self._call("pay", {"action": "pay", **request}, deadline - time.monotonic())
        raise NotSent("no attempt was made")

    async def tokenpay(self, request: Mapping[str, Any]) -> Answer:
        """Send one payment by saved card, in one attempt. Raises `NotSent` or `InDoubt`.

        What the answer repeats of `token` and `cvv` is taken out of it before anybody reads or keeps it.
        """
        answer = await self._call("tokenpay", {"action": "tokenpay", **request}, self._endpoint.timeout)
        card = discreet.Card(request["token"], request["cvv"])
        message = answer.message and card.out_of(answer.message)
        if len(answer.body) == MAX_BODY or card.is_in(answer.body, answer.content_type):  # a token may be cut there
            body = discreet.understood(message)
            return replace(answer, body=body, content_type=discreet.UNDERSTOOD, message=message)
        return replace(answer, message=message)

    async def checkstatus(self, refid: str) -> Answer:
        """Ask what became of `refid`. Raises `NotSent` or `InDoubt`, both of which say nothing of the payment."""
        async with self._asking:
            return await self._call("checkstatus", {"action": "checkstatus", "refid": refid}, self._endpoint.timeout)

    async def addtoken(self, request: Mapping[str, Any]) -> Answer:
        """Ask for a page where a payer saves a card. Raises `NotSent` or `InDoubt`; asking again does no harm."""
        return await self._ask_of_cards("addtoken", request)

    async def tokenlist(self, request: Mapping[str, Any]) -> Answer:
        """Ask for a payer's saved cards. Raises `NotSent` or `InDoubt`."""
        return await self._ask_of_cards("tokenlist", request)

    async def _ask_of_cards(self, action: str, request: Mapping[str, Any]) -> Answer:
        async with self._asking_of_cards:
            return await self._call(action, {"action": action, **request}, self._endpoint.timeout)

    async def _call(self, action: str, request: Mapping[str, Any], seconds: float) -> Answer:
        began, outcome = time.monotonic(), "interrupted"
        try:
            async with asyncio.timeout(seconds):
                answer = await self._post(request)
            outcome = "answered" if answer.message else "unreadable"
        except TimeoutError as exc:
            outcome = "in_doubt"
            raise InDoubt(f"K-Pay did not answer within {self._endpoint.timeout:g} s") from exc
        except NotSent:
            outcome = "not_sent"
            raise
        except _NOTHING_SENT as exc:
            outcome = "not_sent"
            raise NotSent(f"no connection to K-Pay ({type(exc).__name__})") from exc
        except Exception as exc:
            # Whatever it was (a TLS record that is none comes as a bare SSLError): the call had begun.
            outcome = "in_doubt"
            raise InDoubt(f"the connection to K-Pay broke ({type(exc).__name__})") from exc
        finally:
            metrics.GATEWAY_CALLS.labels(action, outcome).inc()
            metrics.GATEWAY_SECONDS.labels(action, outcome).observe(time.monotonic() - began)
        return answer

    @contextmanager
    def _place(self) -> Iterator[httpx2.AsyncClient]:
        """Take the place that was left last: its connection is the likeliest to be open still."""
        if not self._places:
            raise NotSent("every connection to K-Pay is taken")
        client = self._places.pop()
        try:
            yield client
        finally:
            self._places.append(client)

    async def _post(self, request: Mapping[str, Any]) -> Answer:
        with self._place() as client:
            return await self._sent(client, request)

    async def _sent(self, client: httpx2.AsyncClient, request: Mapping[str, Any]) -> Answer:
        async with client.stream("POST", self._endpoint.url, json=request) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) >= MAX_BODY:
                    break
        content_type = response.headers.get("content-type", "")
        kept = bytes(body[:MAX_BODY])
        return Answer(response.status_code, content_type[:200], kept, read(kept, content_type))


@asynccontextmanager
async def connect(endpoint: Endpoint, *, checks: int = 16, payments: int = MOST_PAYMENTS) -> AsyncIterator[KPay]:
    """Yield a client of `endpoint` with connections for so many payments at once, and four times so many `checks`.

    It keeps no cookies. The schedule, payers who come back and whoever asks by hand have a share of `checks` each, and
    so have questions about saved cards: none of them keeps the others waiting.
    """
    connect_seconds = min(_MAX_CONNECT_SECONDS, endpoint.timeout * _CONNECT_SHARE)
    trusted = httpx2.create_ssl_context(trust_env=False)
    places: list[httpx2.AsyncClient] = []
    wanted = _SHARES * checks + checks + payments
    async with AsyncExitStack() as stack:
        while len(places) < wanted:
            client = httpx2.AsyncClient(
                auth=(endpoint.username, endpoint.password),
                headers={"Accept-Encoding": "identity", **({"Kpay-Key": endpoint.key} if endpoint.key else {})},
                timeout=httpx2.Timeout(endpoint.timeout, connect=connect_seconds),
                limits=httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_SECONDS),
                verify=trusted,
                # A cookie would tie payments that have nothing to do with each other to one session at K-Pay.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                follow_redirects=False,
                trust_env=False,
            )
            places += [await stack.enter_async_context(client)] * _PLACES
        yield KPay(places[:wanted], endpoint, checks)


__all__ = ["Answer", "Endpoint", "GatewayError", "InDoubt", "KPay", "NotSent", "connect"]
