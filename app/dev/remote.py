"""A running service from its client's side, for whoever writes that client: events followed and provoked."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httpx2

from app import __version__
from app.domain import FINAL
from app.settings import is_loopback

Json = dict[str, Any]

_PAGE = 1_000
_ANSWER_SECONDS = 15.0
_SILENCE_SECONDS = 45.0
"""A stream that says nothing for so long is broken: a heartbeat comes every 15 s."""
_LONGEST_SECONDS = 60.0
"""As long as a read may wait, and a start take."""
_LOOK_EVERY_SECONDS = 0.3
_MAGIC = 7
"""How many digits at its end choose what a number does at the simulator (docs/simulator.md)."""
_TRY_AGAIN_SECONDS = (0.5, 1.0, 2.0, 5.0)


class RemoteError(Exception):
    """The service did not do what it was asked for; the message says why, and what to do."""


class PassingError(RemoteError):
    """The same may well work in a moment: the service cannot be reached, restarts or is behind."""


class Remote:
    """A running service, as a client with a key sees it. `base_url` has returned `url`; `whose` tells of the key."""

    def __init__(self, url: str, key: str, whose: str) -> None:
        self.url = url
        self._whose = whose
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", "User-Agent": f"kpayd/{__version__}"},
            timeout=_ANSWER_SECONDS,
            trust_env=not is_loopback(httpx2.URL(url).host),  # a proxy's loopback is another one
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, **asked: Any) -> Json:  # noqa: ANN401 - handed on to httpx
        """Return what the service answers. Raises `RemoteError`."""
        with self._reached():
            answer = await self._http.request(method, path, **asked)
        self._judge(answer)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._no_kpayd(answer)
        return body

    async def cursor(self, *, from_start: bool) -> str | None:
        """Return what `follow` goes on from: the last event that there is, or None. Raises `RemoteError`."""
        limit, last = 1 if from_start else _PAGE, None
        while True:
            page = await self.call("GET", "/v1/events", params={"limit": limit} | ({"after": last} if last else {}))
            if from_start:
                return None  # asked all the same: whether the service is there, and knows the key
            last = page["next_cursor"] or last
            if len(page["items"]) < limit:
                return last

    async def follow(self, after: str | None, say: Callable[[str], None]) -> AsyncGenerator[Json, None]:
        """Yield every event after that one (None: from the beginning), whatever breaks in between.

        `say` is told once of each break and once of its end. Raises `RemoteError` where no other try will do better.
        """
        tries = 0
        while True:
            try:
                async with self._stream(after) as events:
                    async for event in events:
                        if tries:
                            say("connected again; nothing was missed")
                        tries = 0
                        if event.data:
                            yield json.loads(event.data)
                            after = event.id
                why = "the service has ended it"
            except PassingError as exc:
                why = _said(exc.__cause__ or exc)
            if not tries:
                say(f"the stream broke off ({why}); trying again until it is back")
            await asyncio.sleep(_TRY_AGAIN_SECONDS[min(tries, len(_TRY_AGAIN_SECONDS) - 1)])
            tries += 1

    @asynccontextmanager
    async def _stream(self, after: str | None) -> AsyncIterator[httpx2.EventSource]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        timeout = httpx2.Timeout(_ANSWER_SECONDS, read=_SILENCE_SECONDS)
        with self._reached():
            async with self._http.stream("GET", "/v1/events/stream", headers=headers, timeout=timeout) as answer:
                if not answer.is_success:
                    await answer.aread()
                    self._judge(answer)
                yield httpx2.EventSource(answer)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as exc:
            raise PassingError(f"{self.url} cannot be reached ({_said(exc)}): does kpayd run there?") from exc

    def _judge(self, answer: httpx2.Response) -> None:
        if answer.is_success:
            return
        problem = _problem(answer)
        detail = str(problem.get("detail", f"HTTP {answer.status_code}"))
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.is_server_error:
            raise PassingError(f"{self.url} says: {detail}")
        if not problem:
            raise self._no_kpayd(answer)
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            raise RemoteError(f"{self.url} does not know the key from {self._whose}: is it another's, or revoked?")
        if answer.status_code == HTTPStatus.FORBIDDEN:
            hint = "a client that has it is made by kpayd clients add NAME --scope ..."
            raise RemoteError(f"{detail} (it is from {self._whose}); {hint}")
        raise RemoteError(f"{self.url} says: {detail}")

    def _no_kpayd(self, answer: httpx2.Response) -> RemoteError:
        return RemoteError(f"{self.url} is not kpayd's address: it answers HTTP {answer.status_code} in other words")


def _said(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__


def _problem(answer: httpx2.Response) -> Json:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) and "code" in body else {}


def base_url(text: str) -> tuple[str, str]:
    """Return where a service is, and its host; `http://` may be left out. Raises `ValueError`: what would be right."""
    try:
        url = httpx2.URL(text if "://" in text else f"http://{text}")
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    usable = url.scheme in ("http", "https") and url.host and (url.port or 1) < 1 << 16
    if not usable or url.userinfo or url.query or url.fragment:
        raise ValueError("must be a service's address, e.g. http://127.0.0.1:8000")
    return str(url).rstrip("/"), url.host


async def only_simulator(remote: Remote, simulator_url: str, msisdn: str) -> None:
    """Raise `RemoteError` unless service and K-Pay are on this machine, and K-Pay is a simulator that has this payer.

    Nobody else may be asked for money.
    """
    if not is_loopback(httpx2.URL(remote.url).host):
        raise RemoteError(f"{remote.url} is not on this machine: nothing was started, lest money moves")
    gateway = (await remote.call("GET", "/readyz")).get("gateway")
    kpay = str(gateway.get("host")) if isinstance(gateway, dict) else "unknown"
    if not is_loopback(kpay):
        raise RemoteError(f"the K-Pay of {remote.url} is {kpay}, and no simulator here: nothing was started")
    if msisdn[-_MAGIC:] not in await _payers(simulator_url):
        where = f"there is no K-Pay simulator at {simulator_url} (--simulator-url)"
        raise RemoteError(f"{where}, so K-Pay may be real: nothing was started")
    port = gateway.get("port") if isinstance(gateway, dict) else None
    if port != (httpx2.URL(simulator_url).port or 80):
        raise RemoteError(
            f"the K-Pay of {remote.url} is at port {port}, another than --simulator-url: nothing was started"
        )


async def _payers(simulator_url: str) -> Sequence[str]:
    """Return the ends of the magic numbers of a simulator on this machine; none where there is no such thing."""
    try:
        url, host = base_url(simulator_url)
        if is_loopback(host):
            async with httpx2.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS) as http:
                rows = (await http.get(f"{url}/_simulator/magic")).json()["items"]
                return [row["msisdn"][-_MAGIC:] for row in rows]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        pass
    return []


@dataclass(frozen=True, slots=True)
class Wish:
    """An event that is to happen, and the payment that makes it."""

    event: str
    refid: str
    msisdn: str
    amount: int


async def provoke(
    remote: Remote, simulator_url: str, wish: Wish, *, wait: float, say: Callable[[], None]
) -> Sequence[Json]:
    """Start a payment where K-Pay is the simulator, `say` so, and return its timeline.

    As soon as the event is in it, or as it is after `wait` seconds. Raises `RemoteError`.
    """
    async with remote:
        await only_simulator(remote, simulator_url, wish.msisdn)
        await remote.call("GET", "/v1/payments", params={"limit": 1})  # a key that may not look starts nothing
        await remote.call("POST", "/v1/payments", json=_request(wish), timeout=_LONGEST_SECONDS)
        say()
        return await _timeline(remote, wish, wait)


def _request(wish: Wish) -> Json:
    return {
        "refid": wish.refid,
        "amount": wish.amount,
        "pmethod": "momo",
        "msisdn": wish.msisdn,
        "email": "ikaneza@example.rw",
        "details": f"kpayd trigger {wish.event}",
        "cname": "KANEZA",
        "redirecturl": "https://shop.example.rw/done",
    }


async def _timeline(remote: Remote, wish: Wish, seconds: float) -> Sequence[Json]:
    until = time.monotonic() + seconds
    path = f"/v1/payments/{wish.refid}"
    while True:
        timeline: list[Json] = (await remote.call("GET", f"{path}/events"))["items"]
        left = min(until - time.monotonic(), _LONGEST_SECONDS)
        if left <= 0 or any(entry["type"] == wish.event for entry in timeline):
            return timeline
        payment = await remote.call("GET", path, params={"wait": left}, timeout=left + _ANSWER_SECONDS)
        if payment["status"] in FINAL:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
