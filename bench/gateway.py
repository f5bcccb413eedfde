"""A gateway that answers every checkstatus "pending" after so many seconds, and can take any number at once.

    .venv/bin/python -m bench.gateway PORT SECONDS

The simulator's pages and ledger would be what is measured. `GET` answers how many questions it has answered.
"""

import asyncio
import json
import sys

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Gateway:
    """Answers, and counts."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer everything that comes by one connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if head.startswith(b"get"):
                    answer = b"%d" % self._answered
                else:
                    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                    asked = json.loads(await reader.readexactly(length))
                    await asyncio.sleep(self._latency)
                    self._answered += 1
                    said = {"tid": "", "refid": asked["refid"], "momtransactionid": "", "statusid": "03"}
                    answer = json.dumps(said | {"statusdesc": "Pending"}).encode()
                writer.write(_HEAD % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def main(port: int, latency: float) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Gateway(latency).serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
