"""Where notifications may go: URLs and addresses, judged without asking anybody.

Every form that getaddrinfo reads as an address is judged as that address, and nothing is left to two readers who read a
URL differently: what is not plain is refused.
"""

import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Self

import httpcore2

from app.settings import HOST_NAME, Network, is_loopback

MAX_URL = 2000

Address = IPv4Address | IPv6Address

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
# What IPv6 has given out to be public. All that embeds an IPv4 address lies outside, but for 6to4 and Teredo; they, the
# relays of 6to4, and where Oracle's and Azure's machines find their metadata are global to some Python or other.
_PUBLIC_IPV6 = ip_network("2000::/3")
_NOT_PUBLIC = tuple(map(ip_network, ("2002::/16", "2001::/32", "192.88.99.0/24", "192.0.0.0/24", "168.63.129.16/32")))


class UrlRefused(ValueError):  # noqa: N818 - what happened to the URL, not that something broke
    """A URL that notifications must not go to; the message says why and what would be right, without the URL."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Where notifications may go besides https on public addresses (`KPAYD_WEBHOOK_HOSTS`)."""

    hosts: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, entries: Sequence[str]) -> Self:
        """Return what the entries list: host names, addresses and networks. Raises `ValueError` for anything else."""
        names = {each for each in (entry.lower().removesuffix(".") for entry in entries) if HOST_NAME.fullmatch(each)}
        others = [entry for entry in entries if entry.lower().removesuffix(".") not in names]
        try:
            return cls(
                frozenset(names), tuple(ip_network(literal_address(each) or each, strict=False) for each in others)
            )
        except ValueError:
            raise ValueError("must be host names, addresses or networks, without scheme and port") from None

    def objection(self, host: str, address: Address | None, *, plain: bool) -> str | None:
        """Return what speaks against `host` at `address` (None: not known yet), if anything does."""
        if host in self.hosts or (address and any(address in network for network in self.networks)):
            return None
        if plain:
            return "must be https; http goes only to what KPAYD_WEBHOOK_HOSTS lists"
        if is_loopback(host) or host.endswith(".localhost") or (address and not _is_public(address)):
            return "leads to an address that is not public; right is a public one, or what KPAYD_WEBHOOK_HOSTS lists"
        return None


def check_url(url: str, allowed: Allowed) -> None:
    """Raise `UrlRefused` where it can be seen without resolution that notifications must not go to `url`."""
    target = parse(url)
    host = target.host.decode()
    if objection := allowed.objection(host, literal_address(host), plain=target.scheme == b"http"):
        raise UrlRefused(objection)


def parse(url: str) -> httpcore2.URL:
    """Return the parts of `url`, its host in one spelling. Raises `UrlRefused` where it is not plain."""
    if len(url) > MAX_URL or not (url.isascii() and url.isprintable()) or set(url) & set(' \\#"<>'):
        raise UrlRefused(f"must be {MAX_URL} printable ASCII characters at most, without space, backslash or fragment")
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("https", "http"):
        raise UrlRefused("must begin with https://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise UrlRefused("must not hold a user name or password")
    match = _AUTHORITY.fullmatch(authority.lower())
    host, port = (match[1].removesuffix("."), match[2]) if match else ("", None)
    literal = literal_address(host)
    if not (literal or HOST_NAME.fullmatch(host)) or (port and not 0 < int(port) < 1 << 16):
        raise UrlRefused("must name a host, and after it nothing but a port from 1 to 65535")
    path = rest[len(authority) :]
    target = path if path.startswith("/") else f"/{path}"
    return httpcore2.URL(
        scheme=scheme.lower(), host=str(literal or host), port=int(port) if port else None, target=target
    )


def literal_address(host: str) -> Address | None:
    """Return the address that `host` is, in any form that getaddrinfo reads: 127.1, 0x7f.1, 2130706433."""
    with suppress(OSError):
        return IPv4Address(socket.inet_aton(host))
    return address_of(host.removeprefix("[").removesuffix("]"))


def address_of(text: str) -> Address | None:
    """Return the address that `text` spells, or None."""
    # An IPv4 address in IPv6's clothes is an IPv4 address; one that holds for one network card only is none.
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast or any(address in network for network in _NOT_PUBLIC):
        return False
    return isinstance(address, IPv4Address) or address in _PUBLIC_IPV6
