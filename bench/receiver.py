"""Receivers of notifications that do nothing but answer 200, and remember when each came and what it tells of.

    .venv/bin/python -m bench.receiver PORT RECEIVERS

Each has a loopback address of its own, since a service has connections of its own for each host: 127.0.0.1 and up.
`GET /` answers how many have come, `GET /arrived` the time of each and its event's timestamp, a line each, and forgets
them, `GET /last` the last request byte for byte. Everything else is a notification, whichever client's.
"""

import asyncio
import sys
import time
from collections import deque
from typing import cast

import uvloop

_MOST = 100_000
"""Arrivals that are remembered: under a load tool nobody asks for them."""
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_TIMESTAMP = b'"timestamp":"'
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Book:
    """What has come, by all connections."""

    def __init__(self) -> None:
        self.count = 0
        self.arrived: deque[tuple[float, bytes]] = deque(maxlen=_MOST)
        self.last = b""

    def note(self, request: bytes) -> None:
        """Note a notification."""
        self.count += 1
        self.last = request
        self.arrived.append((time.time(), request.partition(_TIMESTAMP)[2][:40].partition(b'"')[0]))

    def answer(self, path: bytes) -> bytes:
        """Return what is asked for."""
        if path == b"/last":
            return self.last
        if path == b"/arrived":
            said = b"\n".join(b"%.6f %b" % each for each in self.arrived)
            self.arrived.clear()
            return said
        return b"%d" % self.count


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but the type

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            head = self._received[:end].lower()
            length = int(head.partition(_LENGTH)[2].partition(b"\r\n")[0] or 0)
            whole = end + len(_HEAD_END) + length
            if len(self._received) < whole:
                return
            request, self._received = self._received[:whole], self._received[whole:]
            if request.startswith(b"GET "):
                said = self._book.answer(request.split(b" ", 2)[1])
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
            else:
                self._book.note(request)
                self._transport.write(_OK)


def address(number: int) -> str:
    """Return the address of a receiver; the first one has the number 0."""
    return f"127.0.0.{number + 1}"


async def main(port: int, count: int) -> None:
    """Serve until killed."""
    book, hosts = Book(), [address(number) for number in range(count)]
    server = await asyncio.get_running_loop().create_server(lambda: Connection(book), hosts, port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
