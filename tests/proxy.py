"""A TCP proxy that misbehaves on command: what stands between the service, PostgreSQL and K-Pay when the network fails.

It runs in a thread of its own, so that a test can turn a fault on and off while requests are under way.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Direction = Literal["request", "answer"]
Watch = Callable[[Direction, bytes], None]
"""Called with every chunk before it is handed on, in the proxy's thread. It may take its time, and kill somebody."""

_CHUNK = 64 * 1024


class Fault(StrEnum):
    """What the proxy does to its connections."""

    NONE = "none"
    REFUSE = "refuse"
    """New connections are refused; those that are open are reset."""
    RESET = "reset"
    """Connections are taken and reset at once."""
    BLACKHOLE = "blackhole"
    """Everything is swallowed, in both directions, and every connection stays open."""
    LOSE_REQUEST = "lose_request"
    """What the client sends is swallowed, then the connection is reset."""
    LOSE_ANSWER = "lose_answer"
    """The request arrives; its answer is swallowed and the connection is reset."""
    HOLD_ANSWER = "hold_answer"
    """The request arrives; its answer never does, and the connection stays open."""
    TRUNCATE = "truncate"
    """The first `amount` bytes of an answer arrive, then the connection ends."""
    DRIBBLE = "dribble"
    """An answer arrives one byte at a time, `amount` seconds apart."""
    DELAY = "delay"
    """Every chunk is `amount` seconds late."""


@dataclass(frozen=True)
class Weather:
    """The fault that rules now, and how much of it."""

    fault: Fault = Fault.NONE
    amount: float = 0.0


Upstream = tuple[str, int] | str
"""A host and port, or the path of a Unix socket."""


class _Cut(Exception):  # noqa: N818 - the name says what happens
    """Reset both sides."""


class Proxy:
    """Hands connections at `port` on to `upstream`. Make it by `running_proxy`."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.port = 0
        self.connections = 0
        """How many connections have come so far."""
        self.watch: Watch | None = None
        self.passes_over = b""
        """What a connection says that is not watched from then on."""
        self._weather = Weather()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where clients connect, as http."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, fault: Fault, amount: float = 0.0) -> None:
        """Change the weather for what comes from now on, also on connections that are open."""
        self._run(self._set(Weather(fault, amount)))

    def cut(self) -> None:
        """Reset every connection that is open."""
        self._run(self._cut())

    def move(self, upstream: Upstream) -> None:
        """Hand new connections on to another server, as an address that moves in a failover."""
        self.upstream = upstream

    def start(self) -> None:
        """Listen on a free port."""
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """Let go of everything."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _unlisten(self) -> None:
        if self._server is None:
            return
        # What has been accepted becomes a connection first: on a closed server asyncio leaves it as it is, unclosed.
        for listening in self._server.sockets:
            self._loop.remove_reader(listening)
        await asyncio.sleep(0)
        self._server.close()
        self._server = None

    async def _set(self, weather: Weather) -> None:
        self._weather = weather
        if weather.fault is Fault.REFUSE:
            await self._unlisten()
            await self._cut()
        elif self._server is None:
            await self._listen()

    async def _cut(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _end(self) -> None:
        await self._unlisten()
        await self._cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self._open.add(writer)
        upstream = None
        try:
            if self._weather.fault is Fault.RESET:
                return
            upstream = await self._connect()
            self._open.add(upstream[1])
            passed_over = asyncio.Event()
            pipes = [
                asyncio.ensure_future(self._pipe(reader, upstream[1], "request", passed_over)),
                asyncio.ensure_future(self._pipe(upstream[0], writer, "answer", passed_over)),
            ]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                results = await asyncio.gather(*pipes, return_exceptions=True)
            if not any(isinstance(result, _Cut) for result in results):
                for each in (writer, upstream[1]):
                    with contextlib.suppress(OSError):
                        await each.drain()
                    each.close()
        except (OSError, asyncio.CancelledError):
            pass  # the other side is not there, or the proxy ends: the client sees a reset
        finally:
            for each in (writer, *(upstream[1:] if upstream else ())):
                self._open.discard(each)
                if not each.is_closing():
                    _reset(each)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, str):
            return await asyncio.open_unix_connection(self.upstream)
        return await asyncio.open_connection(*self.upstream)

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Direction,
        passed_over: asyncio.Event,
    ) -> None:
        while chunk := await reader.read(_CHUNK):
            if self.passes_over and self.passes_over in chunk:
                passed_over.set()
            if self.watch is not None and not passed_over.is_set():
                self.watch(direction, chunk)
            await self._hand_on(chunk, writer, direction)

    async def _hand_on(self, chunk: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        weather = self._weather
        match weather.fault, direction:
            case Fault.BLACKHOLE, _:
                return
            case Fault.HOLD_ANSWER, "answer":
                return
            case (Fault.LOSE_REQUEST, "request") | (Fault.LOSE_ANSWER, "answer"):
                raise _Cut
            case Fault.TRUNCATE, "answer":
                writer.write(chunk[: int(weather.amount)])
                await writer.drain()
                writer.close()
                raise _Cut
            case Fault.DRIBBLE, "answer":
                for byte in chunk:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(weather.amount)
                return
            case Fault.DELAY, _:
                await asyncio.sleep(weather.amount)
        writer.write(chunk)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def running_proxy(upstream: Upstream) -> Iterator[Proxy]:
    """Run a proxy before `upstream` until the block ends."""
    proxy = Proxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
