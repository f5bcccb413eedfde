"""The server that the simulator runs under: uvicorn, able to hang up on a caller and to stop without waiting."""

import asyncio
import logging
import socket

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.simulator.app import Config, create_simulator
from app.simulator.delivery import HANGUP


class HangupProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, and one extension of ASGI: to close the connection without an answer.

    ASGI has no such thing: an application that raises is answered for with a 500, and one that breaks off a body has
    sent a status line already. uvicorn takes a protocol class as its setting `http`.
    """

    def on_message_begin(self) -> None:
        """Begin a request with the extension in its scope."""
        super().on_message_begin()
        self.scope["extensions"] = {HANGUP: {"close": self.transport.abort}}


class SimulatorServer(uvicorn.Server):
    """uvicorn's server, which at its end lets go of the answers that are being held: it would wait for them."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: held answers end in a 504, dribbled ones where they are, postbacks are not sent."""
        self._closing.set()
        await super().shutdown(sockets)


def make_server(
    config: Config, host: str = "127.0.0.1", port: int = 8089, *, log_level: str | None = None
) -> SimulatorServer:
    """Make a server with an empty ledger, to `run()` in a thread or to `await serve()` in a task.

    It leaves the process's logging alone, but for uvicorn's access log, which it turns off. Port 0 takes a free one:
    `server.servers[0].sockets[0].getsockname()` tells it once `server.started`. `server.should_exit = True` ends it.
    """
    app = create_simulator(config)
    settings = uvicorn.Config(
        app,
        host,
        port,
        loop="uvloop",
        http=HangupProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=log_level,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return SimulatorServer(settings, app.state.closing)


def serve(config: Config, host: str = "127.0.0.1", port: int = 8089) -> None:
    """Run the simulator until SIGINT or SIGTERM; print nothing but uvicorn's warnings."""
    # httpx2 logs whole URLs at INFO, and in a returl stands what authenticates the postback.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    make_server(config, host, port, log_level="warning").run()
