"""What the routes work with, and who is calling."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from app.api.problems import Problem
from app.bell import Bell
from app.clients import Client, Clients
from app.database import Database
from app.domain import Scope
from app.guesses import Guesses
from app.inbox import Inbox
from app.intake import Intake
from app.kpay.unseen import Unseen
from app.load import Load
from app.macs import Macs
from app.notify import Notifier
from app.payments import Payments
from app.publish import Publisher
from app.reads import Lookup
from app.reconcile import Reconciler
from app.schema import Schema
from app.settings import Network, Settings
from app.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one running service. `stopping` is set when it is told to end: nothing new begins then."""

    settings: Settings
    database: Database
    lookup: Lookup
    clients: Clients
    payments: Payments
    tokens: Tokens
    intake: Intake
    inbox: Inbox
    reconciler: Reconciler
    publisher: Publisher
    notifier: Notifier
    macs: Macs
    bell: Bell
    unseen: Unseen
    load: Load
    guesses: Guesses
    schema: Schema
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    pages: dict[tuple[str, int], asyncio.Task[tuple[bytes, int]]] = field(default_factory=dict)


def parts_of(request: Request) -> Context:
    """Return the parts of the service that `request` came to."""
    return cast("Context", request.app.state.context)


async def _parts(request: Request) -> Context:
    # A plain function would be sent through a thread for every request.
    return parts_of(request)


def unauthorized() -> Problem:
    """Return the 401 of a call whose key is nobody's, or is not any more."""
    return Problem(401, "unauthorized", "give a valid key: Authorization: Bearer KEY")


async def still_valid(request: Request, parts: Context) -> bool:
    """Whether the key that `request` came with is still somebody's: one that is revoked dies while it waits, too."""
    return await parts.clients.by_key(request.state.key) is not None


Parts = Annotated[Context, Depends(_parts)]
_bearer = HTTPBearer(auto_error=False, description="The key that `kpayd clients add` shows once")


def _caller(scope: Scope) -> Callable[..., Awaitable[Client]]:
    """Return a dependency that yields the client `Authentication` found, or answers 403 where it lacks `scope`."""

    async def authorize(request: Request, _: Annotated[object, Security(_bearer)]) -> Client:
        return caller_of(request, scope)

    return authorize


def caller_of(request: Request, scope: Scope) -> Client:
    """Return the client that `Authentication` found; raises a 403 where it lacks `scope`."""
    client: Client = request.state.client
    if scope not in client.scopes:
        raise Problem(403, "forbidden", f"this key lacks the scope {scope}")
    return client


Writer = Annotated[Client, Depends(_caller(Scope.PAYMENTS_WRITE))]
Reader = Annotated[Client, Depends(_caller(Scope.PAYMENTS_READ))]
TokenWriter = Annotated[Client, Depends(_caller(Scope.TOKENS_WRITE))]
Listener = Annotated[Client, Depends(_caller(Scope.EVENTS_READ))]


def remote_address(request: Request, trusted: list[Network]) -> str:
    """Return who sent `request`: X-Forwarded-For is walked from the right, as far as trusted proxies wrote it."""
    address = request.client.host if request.client else ""
    if not trusted:
        return address
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
    while forwarded and is_within(address, trusted):
        address = forwarded.pop().strip() or address
        if address.count(":") == 1:
            address = address.split(":")[0]  # some proxies write the port, too
    return address


def is_within(address: str, networks: list[Network]) -> bool:
    """Whether `address` is an IP address in one of `networks`; IPv4 written as IPv6 counts as IPv4."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return any(ip in network for network in networks)
