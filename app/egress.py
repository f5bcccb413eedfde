"""The way out: the one by which notifications leave for a URL that a client gave.

A name is resolved, every address it leads to is checked, and the connection goes to a checked one by number, while TLS
goes on with the name. Nothing here follows a redirect, keeps a cookie, asks the environment for a proxy or
decompresses: it is httpcore's pool without httpx's client above it.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore2
import httpx2

from app.addresses import Allowed, UrlRefused, address_of, literal_address, parse

MAX_BODY = 4096
MAX_RETRY_AFTER = 86_400.0
LOOKUPS = 32
"""Names looked up at once: a dead one takes a thread for as long as the resolver tries, half a minute or so."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_KEEP_SECONDS = 10.0
_IDLE_SECONDS = 2.0
_BODY_SECONDS = 1.0
_MOST_ADDRESSES = 6


class NotDelivered(Exception):  # noqa: N818 - it is an outcome: nobody is known to have received it
    """No answer: the message says why in a few words, without the URL."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the receiver answered; `retry_after` is in seconds, a day at most."""

    http_status: int
    retry_after: float | None


class Egress:
    """Delivers notifications. Make it by `connect`, which closes its connections."""

    def __init__(self, pool_for: Callable[[httpcore2.URL], httpcore2.AsyncConnectionPool], timeout: float) -> None:
        self._pool_for, self._timeout = pool_for, timeout

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one POST, once, and bring back how it was answered, whatever the status. Raises `NotDelivered`."""
        try:
            target = parse(url)
            return await self._post(target, headers, body)
        except (NotDelivered, UrlRefused) as exc:
            raise NotDelivered(*exc.args) from None
        except TimeoutError:
            raise NotDelivered(f"no answer within {self._timeout:g} s") from None
        except (httpcore2.ConnectError, ssl.SSLError):
            raise NotDelivered("no TLS, or a certificate that is not good for its host") from None
        except Exception as exc:
            raise NotDelivered(f"the answer was cut off or cannot be read ({type(exc).__name__})") from exc

    async def _post(self, target: httpcore2.URL, headers: Mapping[str, str], body: bytes) -> Reply:
        host = b"[%b]" % target.host if b":" in target.host else target.host
        own = {"Host": host if target.port is None else b"%b:%d" % (host, target.port)}
        own |= {"Accept-Encoding": b"identity", "Content-Length": b"%d" % len(body)}
        request = httpcore2.Request("POST", target, headers=[*own.items(), *headers.items()], content=body)
        async with asyncio.timeout(self._timeout):
            response = await self._pool_for(target).handle_async_request(request)
        try:
            await _drain(response)
        finally:
            await response.aclose()
        return Reply(response.status, _retry_after(response.headers))


async def _drain(response: httpcore2.Response) -> None:
    """Read a body to its end, so that its connection can be used again; one that is long or slow is hung up on.

    The status is the answer: whatever becomes of the body changes nothing of it.
    """
    size = 0
    with suppress(TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError):
        async with asyncio.timeout(_BODY_SECONDS), aclosing(response.aiter_stream()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                if size >= MAX_BODY:
                    return


class _Gate(httpcore2.AsyncNetworkBackend):
    def __init__(self, names: "_Names", allowed: Allowed, timeout: float, *, plain: bool) -> None:
        self._names, self._allowed, self._timeout, self._plain = names, allowed, timeout, plain
        self._tcp = httpcore2.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        literal = literal_address(host)
        addresses = {literal} if literal else {address_of(text) for text in await self._names.addresses(host, port)}
        if not addresses:
            raise NotDelivered("its host's name leads nowhere")
        for address in addresses:
            if address is None:
                raise NotDelivered("leads to what is no address, or one that holds for one network card only")
            if objection := self._allowed.objection(host, address, plain=self._plain):
                raise NotDelivered(objection)
        # IPv4 first: many a machine has an IPv6 address and no way out by it.
        tried = sorted((each for each in addresses if each), key=lambda each: each.version)[:_MOST_ADDRESSES]
        for address in tried:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                stream = await self._tcp.connect_tcp(str(address), port, timeout=self._timeout / len(tried))
                return stream if self._plain else _BeforeTls(stream)
        raise NotDelivered("nobody takes the connection")


class _BeforeTls(httpcore2.AsyncNetworkStream):
    # A connection that is cancelled in the handshake httpcore leaves open until the garbage collector comes by.
    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(self, *how: Any, **named: Any) -> httpcore2.AsyncNetworkStream:  # noqa: ANN401 - handed on
        try:
            return await self._stream.start_tls(*how, **named)
        except BaseException:
            await self._stream.aclose()
            raise


class _Names:
    def __init__(self, resolve: Resolve, seconds: float = _KEEP_SECONDS) -> None:
        self._resolve, self._seconds, self._free = resolve, seconds, asyncio.Semaphore(LOOKUPS)
        self.lookups: dict[tuple[str, int], asyncio.Task[Sequence[str]]] = {}

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Return what `host` leads to, by one look-up for all who ask until some seconds after its end."""
        lookup = self.lookups.get((host, port))
        if lookup is None:
            lookup = self.lookups[host, port] = asyncio.create_task(self._look_up(host, port))
        await asyncio.wait([lookup])
        return () if lookup.cancelled() else lookup.result()

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        try:
            async with self._free:
                return await self._resolve(host, port)
        except (OSError, UnicodeError, RuntimeError):
            return ()
        finally:
            asyncio.get_running_loop().call_later(self._seconds, self.lookups.pop, (host, port), None)


async def by_getaddrinfo(host: str, port: int) -> Sequence[str]:
    """Ask the system, in a thread that does not keep the process from ending, as an executor's would."""
    found: Future[list[Any]] = Future()
    found.set_running_or_notify_cancel()

    def look_up() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as exc:  # noqa: BLE001 - raised again where it is waited for
            found.set_exception(exc)

    threading.Thread(target=look_up, name="egress-dns", daemon=True).start()
    return [str(sockaddr[0]) for *_, sockaddr in await asyncio.wrap_future(found)]


@asynccontextmanager
async def connect(
    allowed: Allowed,
    *,
    timeout: float,  # noqa: ASYNC109 - the deadline of each POST
    resolve: Resolve = by_getaddrinfo,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Egress]:
    """Yield the way out, with `timeout` for a whole POST."""
    names, context = _Names(resolve), tls or httpx2.create_ssl_context(trust_env=False)

    async with AsyncExitStack() as stack:
        # For each host one: httpcore looks at every connection of a pool for every request. Without a limit of its own:
        # two clients may share a host, and the couriers have theirs.
        pools: dict[tuple[bytes, bytes, int | None], httpcore2.AsyncConnectionPool] = {}

        def pool_for(target: httpcore2.URL) -> httpcore2.AsyncConnectionPool:
            origin = (target.scheme, target.host, target.port)
            if origin not in pools:
                gate = _Gate(names, allowed, timeout, plain=target.scheme == b"http")
                pool = pools[origin] = httpcore2.AsyncConnectionPool(
                    context, max_connections=None, keepalive_expiry=_IDLE_SECONDS, network_backend=gate
                )
                stack.push_async_callback(pool.aclose)
            return pools[origin]

        try:
            yield Egress(pool_for, timeout)
        finally:
            for lookup in names.lookups.values():
                lookup.cancel()


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    value = next((value.decode("latin-1") for name, value in headers if name.lower() == b"retry-after"), "").strip()
    if value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(value)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds.total_seconds(), 0.0), MAX_RETRY_AFTER)
