"""What the tests of the way out share: where names lead, and one POST."""

import asyncio
from collections.abc import Sequence

from app.addresses import Allowed
from app.egress import Reply, Resolve, connect

from .servers import Behaviour, Server

NOBODY = Allowed.of([])
HOOKS = Allowed.of(["hooks.test"])
HERE = "127.0.0.1"
HEAD = b"HTTP/1.1 200 OK\r\n"
CLIENTS_WAY_IN = {"content-type": "application/json", "webhook-id": "e1"}


def leads_to(*addresses: str) -> Resolve:
    """Return a resolver by which every name leads to these addresses."""

    async def resolve(_: str, __: int) -> Sequence[str]:
        return addresses

    return resolve


def bracketed(address: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def repeats(start: bytes, more: bytes) -> Behaviour:
    """Return the behaviour of a server that says the same without end."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(more * 1000)
            await writer.drain()

    return behave


async def posted(server: Server, allowed: Allowed = HOOKS, *, within: float = 10, scheme: str = "http") -> Reply:
    """Post to a server, as hooks.test."""
    async with connect(allowed, timeout=within, resolve=leads_to(HERE)) as egress:
        return await egress.post(f"{scheme}://hooks.test:{server.port}/in?a=b%20c", CLIENTS_WAY_IN, b"{}")
