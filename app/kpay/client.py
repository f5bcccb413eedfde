"""The client: asks K-Pay for money and for news, and brings back what it said.

One call is one POST with Basic authorization and one total deadline: a time-out for each read is never met by an
answer that dribbles in. TLS is verified and a body is read up to 64 KiB. Nothing here follows a redirect, keeps a
cookie or asks the environment for a proxy: it is httpcore's pool without httpx's client above it, which took as much
CPU again (docs/decisions/0025-k-pay-without-a-client.md).
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpcore2
import httpx2
import stamina

from app import __version__, metrics
from app.kpay import discreet
from app.kpay.errors import GatewayError, InDoubt, NotSent
from app.kpay.wire import Message, read

MAX_BODY = 64 * 1024
CONNECT_ATTEMPTS = 3
MOST_PAYMENTS = 256
"""Payment requests at once, each with a connection of its own: whoever starts more would wait for nothing."""

_SHARES = 3
_CONNECT_SHARE = 0.25
_MAX_CONNECT_SECONDS = 5.0
# Shorter than any server's own idle limit that we know of: a request sent into a connection that is just being
# closed is in doubt for no good reason.
_IDLE_SECONDS = 2.0
_NOTHING_SENT = (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout, httpcore2.UnsupportedProtocol)


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

    def __init__(self, places: list[httpcore2.AsyncConnectionPool], endpoint: Endpoint, checks: int) -> None:
        self._places = places
        self._endpoint = endpoint
        url = httpx2.URL(endpoint.url)
        self._url = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        self._headers = _headers(endpoint, url.netloc)
        # One for each read or write would cost more than the deadline of the whole.
        connect_seconds = min(_MAX_CONNECT_SECONDS, endpoint.timeout * _CONNECT_SHARE)
        self._extensions = {"timeout": {"connect": connect_seconds}}
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
    def _place(self) -> Iterator[httpcore2.AsyncConnectionPool]:
        """Take the place that was left last: its connection is the likeliest to be open still."""
        if not self._places:
            raise NotSent("every connection to K-Pay is taken")
        pool = self._places.pop()
        try:
            yield pool
        finally:
            self._places.append(pool)

    async def _post(self, request: Mapping[str, Any]) -> Answer:
        content = json.dumps(request, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        headers = [*self._headers, (b"Content-Length", b"%d" % len(content))]
        with self._place() as pool:
            response = await pool.handle_async_request(
                httpcore2.Request("POST", self._url, headers=headers, content=content, extensions=self._extensions)
            )
            try:
                body = await _read_up_to_limit(response)
            finally:
                await response.aclose()
        told = {name.lower(): value for name, value in reversed(response.headers)}
        if b"content-encoding" in told:
            body = _decoded(response, body)
        content_type = told.get(b"content-type", b"").decode("latin-1")
        return Answer(response.status, content_type[:200], body, read(body, content_type))


def _headers(endpoint: Endpoint, host: bytes) -> list[tuple[bytes, bytes]]:
    credentials = base64.b64encode(f"{endpoint.username}:{endpoint.password}".encode())
    headers = {
        b"Host": host,
        b"Accept": b"*/*",
        b"Accept-Encoding": b"identity",
        b"User-Agent": f"kpayd/{__version__}".encode(),
        b"Authorization": b"Basic " + credentials,
        b"Content-Type": b"application/json",
    }
    if endpoint.key:
        headers[b"Kpay-Key"] = endpoint.key.encode()
    return list(headers.items())


async def _read_up_to_limit(response: httpcore2.Response) -> bytes:
    body = bytearray()
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= MAX_BODY:
                break
    return bytes(body[:MAX_BODY])


def _decoded(response: httpcore2.Response, body: bytes) -> bytes:
    """Return what a server meant that encodes its answers although it was asked not to."""
    stream, decoded = httpx2.ByteStream(body), bytearray()
    for chunk in httpx2.Response(response.status, headers=response.headers, stream=stream).iter_bytes():
        decoded += chunk
        if len(decoded) >= MAX_BODY:
            break
    return bytes(decoded[:MAX_BODY])


@asynccontextmanager
async def connect(endpoint: Endpoint, *, checks: int = 16, payments: int = MOST_PAYMENTS) -> AsyncIterator[KPay]:
    """Yield a client of `endpoint` with connections for so many payments at once, and four times so many `checks`.

    The schedule, payers who come back and whoever asks by hand have a share of `checks` each, and so have questions
    about saved cards: none of them keeps the others waiting.
    """
    trusted = httpx2.create_ssl_context(trust_env=False)
    async with AsyncExitStack() as stack:
        # A pool for each connection: for each call a pool looks at all that it has.
        places = [
            await stack.enter_async_context(
                httpcore2.AsyncConnectionPool(trusted, max_connections=None, keepalive_expiry=_IDLE_SECONDS)
            )
            for _ in range(_SHARES * checks + checks + payments)
        ]
        yield KPay(places, endpoint, checks)


__all__ = ["Answer", "Endpoint", "GatewayError", "InDoubt", "KPay", "NotSent", "connect"]
