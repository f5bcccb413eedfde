"""Servers on loopback that misbehave in one way each, down to the socket."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY

from app.kpay.client import Endpoint

PENDING = {"reply": "PENDING", "success": 1, "tid": "A1", "refid": "R1", "retcode": 0}


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body."""
        members: dict[str, Any] = json.loads(self.body)
        return members


@dataclass
class Server:
    """What a server has seen. Requests that it did not read to their end are not among them."""

    port: int
    scheme: str = "http"
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    def endpoint(self, *, timeout: float = 20.0, key: str = "") -> Endpoint:
        """Return this server as K-Pay's endpoint. A quarter of `timeout` is for connecting."""
        return Endpoint(f"{self.scheme}://127.0.0.1:{self.port}/", "user", "pässword", key, timeout)


Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(
    behave: Behaviour, *, sock: socket.socket | None = None, tls: ssl.SSLContext | None = None, reads: bool = True
) -> AsyncIterator[Server]:
    """Run a server that does as `behave` with each request, or with each connection if it never `reads`."""
    server = Server(0, "https" if tls else "http")
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        if task := asyncio.current_task():
            tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                if reads:
                    server.requests.append(await _request(reader))
                await behave(writer)
                await writer.drain()
        writer.transport.abort()

    sock = sock or bound()
    listening = await asyncio.start_server(handle, sock=sock, ssl=tls)
    server.port = sock.getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(done: Callable[[], bool]) -> None:
    """Wait until something is so, ten seconds at most."""
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


def bound() -> socket.socket:
    """Return a socket that has a port, where every connection is refused until somebody listens."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
    return Request(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def says(body: bytes | dict[str, Any], status: str = "200 OK", *headers: str, length: int | None = None) -> Behaviour:
    """Return the behaviour of a server that answers; `length` is the one it announces."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers, "", ""])
    return sends(head.encode() + content)


def sends(data: bytes, *, close: bool = False) -> Behaviour:
    """Return the behaviour of a server that sends some bytes, whatever they are, and may hang up then."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            writer.close()

    return behave


def then_close(behaviour: Behaviour) -> Behaviour:
    """Return a behaviour after which the server hangs up."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        await behaviour(writer)
        writer.close()

    return behave


async def resets(writer: asyncio.StreamWriter) -> None:
    """Break the connection off."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def not_sent(action: str) -> float:
    """Return how many calls of K-Pay this process has counted as not sent."""
    labels = {"action": action, "outcome": "not_sent"}
    return REGISTRY.get_sample_value("kpayd_gateway_calls_total", labels) or 0


async def is_silent(_: asyncio.StreamWriter) -> None:
    """Say nothing, for longer than anybody waits."""
    await asyncio.sleep(60)


def dribbles(start: bytes) -> Behaviour:
    """Return the behaviour of a server that sends a byte every 20 ms, for ever."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    return behave


def floods(start: bytes) -> Behaviour:
    """Return the behaviour of a server that sends without end, as fast as it can."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    return behave
