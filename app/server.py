"""The server: uvicorn on httptools and uvloop, with the head of a request bounded, no upgrades and a wider door.

uvicorn waits for ever for a head, takes one of any size, and loses the body of a request that offers an upgrade, which
Java's HttpClient does on every plain-HTTP call (`Upgrade: h2c`). A real postback would arrive empty. And uvloop takes
one new connection in each turn of its loop: under load postbacks, which come on new ones, stood outside for seconds.
"""

import asyncio
import re
import sys
import weakref
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

MAX_HEAD = 64 * 1024
HEAD_SECONDS = 10.0

_DOORS = 32
"""How many times the listening socket is given to the loop: so many connections are taken in each of its turns."""

_END = b"\r\n\r\n"
# Renamed in place: without it the parser sees an ordinary request, which is what it is to us.
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)


class _Joined:
    """A transport that sends the head of an answer and its body in one piece, where they come in one turn of the loop.

    uvicorn writes them apart, and each write is a packet that wakes whoever waits for it. One piece at most is held
    back, and no longer than until the next turn: a stream's head does not wait for its first event.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._soon = loop.call_soon
        self._held = b""
        self.abort, self.is_closing = transport.abort, transport.is_closing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's own
        """Leave all else to the transport."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` with what is held, or hold it."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            self._soon(self.flush)

    def close(self) -> None:
        """Send what is held, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, b""
        if held and not self.is_closing():  # whoever read may have hung up meanwhile
            self._transport.write(held)


class Protocol(HttpToolsProtocol):
    """One connection. A head over 64 KiB is answered 400, one that is not there within ten seconds cut off."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own signature
        """Begin, and give the first head its time."""
        self._joined = _Joined(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._joined))
        self._head = bytearray()
        self._cut_off: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Send what is held to one who only hears from here on: the transport is closed next."""
        self._joined.flush()

    def data_received(self, data: bytes) -> None:
        """Hand a head on when it is whole, and what follows it at once."""
        if self.cycle is not None and self.cycle.more_body:  # type: ignore[redundant-expr] # None until a first request
            super().data_received(data)
            return
        searched = max(0, len(self._head) - len(_END))
        self._head += data
        end = self._head.find(_END, searched)
        if end < 0 and len(self._head) <= MAX_HEAD:
            self._await_head()
            return
        self._stop_waiting()
        received = bytes(self._head)
        self._head.clear()
        if end < 0 or end > MAX_HEAD:
            self.send_400_response("The request's head is too large.")
            return
        super().data_received(_UPGRADE.sub(b"\r\nx-upgrade:", received[:end]) + received[end:])

    def on_headers_complete(self) -> None:
        """Let whoever answers hang up on a reader that takes nothing: a close would wait for it for ever.

        And let whoever reads the body see whether it is all there: most come with their head, and need no clock.
        """
        self.scope["state"]["hang_up"] = self.transport.abort
        super().on_headers_complete()
        # A reference proper makes a ring of each request: to undo them the collector stopped everything for 60 ms.
        cycle = weakref.proxy(self.cycle)
        self.scope["state"]["body_is_there"] = lambda: not cycle.more_body

    def _await_head(self) -> None:
        if self._cut_off is None:
            self._cut_off = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
            self._cut_off = None


def run(app: str, *, host: str, port: int, workers: int, drain_seconds: int) -> None:
    """Serve what the factory `app` makes until SIGTERM or SIGINT; ends the process where it cannot start."""
    config = uvicorn.Config(
        app,
        host,
        port,
        factory=True,
        workers=workers,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,  # it prints whole URLs, and with them the listener's macs
        log_config=None,
        proxy_headers=False,  # who is trusted is KPAYD_TRUSTED_PROXIES' to say
        server_header=False,
        timeout_keep_alive=75,  # longer than a proxy before us keeps its idle connections
        timeout_graceful_shutdown=drain_seconds,
    )
    door = config.bind_socket()
    doors = [door, *(door.dup() for _ in range(_DOORS - 1))]
    if workers > 1:
        Multiprocess(config, sockets=doors).run()
        return
    server = uvicorn.Server(config)
    server.run(doors)
    if not server.started:
        sys.exit(1)
