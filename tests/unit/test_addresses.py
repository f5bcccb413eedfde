"""Where notifications do not go, however it is written and wherever a name leads."""

from collections.abc import Sequence

import pytest

from app.addresses import MAX_URL, Allowed, UrlRefused, check_url
from app.egress import NotDelivered, _Names, connect

from .outside import HERE, HOOKS, NOBODY, bracketed, leads_to, posted
from .servers import is_silent, says, serving, until

pytestmark = pytest.mark.anyio

INSIDE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "240.0.0.1"),  # noqa: S104 - refused
    *("255.255.255.255", "224.0.0.1", "239.1.1.1", "192.0.0.192", "168.63.129.16", "192.88.99.1", "198.18.0.1"),
    *("::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "fe80::1", "fc00::1"),
    *("fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "100::1"),
    *("2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1"),
]
"""Addresses that no client has any business with."""
SPELLED = [
    *("2130706433", "0177.0.0.1", "127.1", "0x7f.1", "0X7F.0.0.1", "017700000001", "127.0.0.1.", "0"),
    *("localhost", "localhost.", "LOCALHOST", "LocalHost.", "any.localhost"),
]
"""Loopback, in the other forms that getaddrinfo reads."""
MALFORMED = [
    *("", "https", "https:", "https://", "https:///hook", "https:/hooks.test/", "//hooks.test/", "hooks.test", "https://."),
    *("ftp://hooks.test/", "file:///etc/passwd", "gopher://hooks.test/", "https+http://hooks.test/"),
    *("https://user:pass@hooks.test/", "https://user@hooks.test/", "https://@hooks.test/", "https://hooks.test@127.0.0.1/"),
    *("https://hooks.test/#part", "https://hooks.test#@127.0.0.1/", "https://hooks.test\\@127.0.0.1/"),
    *("https://hooks.test:0/", "https://hooks.test:65536/", "https://hooks.test:-1/", "https://hooks.test:4 43/"),
    *("https://hooks .test/", " https://hooks.test/", "https://hooks.test/\r\nX: y", "https://hooks.test/\x00", "https://hooks.test/\t"),
    *("https://\uff11\uff12\uff17.0.0.1/", "https://bücher.test/", "https://hooks\u3002test/", "https://hooks%2etest/", "https://127%2e0.0.1/"),
    *("https://[::1/", "https://::1/", "https://[hooks.test]/", "https://hooks[::1]/", "https://[::1]x/", "https://[fe80::1%25eth0]/"),
    *("https://256.256.256.256/", "https://1.2.3.4.5/", "https://hooks.0x7f/", "https://hooks..test/", "https://-hooks.test/"),
    f"https://{'a' * 64}.test/",
    "https://hooks.test/" + "a" * MAX_URL,
]  # fmt: skip


@pytest.mark.parametrize("url", MALFORMED)
async def test_fault_50_a_url_that_two_readers_read_differently_is_refused(url: str) -> None:
    """A URL that names no plain host, or can be read in two ways, is refused when it is given and when it is used."""
    async with connect(HOOKS, timeout=2, resolve=leads_to()) as egress:
        with pytest.raises(NotDelivered, match="must ") as not_delivered:
            await egress.post(url, {}, b"")
    with pytest.raises(UrlRefused) as refused:
        check_url(url, HOOKS)
    assert str(not_delivered.value) == str(refused.value)
    assert "hooks" not in str(refused.value)


@pytest.mark.parametrize("host", [*SPELLED, *map(bracketed, INSIDE)])
async def test_fault_50_an_address_inside_is_refused_however_it_is_written(host: str) -> None:
    """An address that is not public is refused in every form that a resolver reads, before anything is connected."""
    async with serving(says(b"")) as server, connect(NOBODY, timeout=2) as egress:
        url = f"https://{host}:{server.port}/"
        with pytest.raises(UrlRefused, match="not public"):
            check_url(url, NOBODY)
        with pytest.raises(NotDelivered, match=r"not public|nowhere"):
            await egress.post(url, {}, b"")
        with pytest.raises(UrlRefused, match="must be https"):
            check_url(url.replace("https", "http"), NOBODY)
    assert server.connections == 0


@pytest.mark.parametrize("address", INSIDE)
async def test_fault_50_a_name_that_leads_inside_is_refused(address: str) -> None:
    """A name is judged by the address it leads to, and nothing is connected where that is not public."""
    async with serving(says(b"")) as server, connect(HOOKS, timeout=2, resolve=leads_to(address)) as egress:
        check_url("https://public.test/", HOOKS)
        with pytest.raises(NotDelivered, match="not public"):
            await egress.post(f"https://public.test:{server.port}/", {}, b"")
    assert server.connections == 0


@pytest.mark.parametrize("address", ["fe80::1%1", "2a00::1%eth0", "::ffff:127.0.0.1%1", "nonsense"])
async def test_fault_50_an_address_on_one_network_card_is_refused(address: str) -> None:
    """An address with a scope is refused, even where its host is listed."""
    async with connect(HOOKS, timeout=2, resolve=leads_to(address)) as egress:
        with pytest.raises(NotDelivered, match="network card"):
            await egress.post("https://hooks.test/", {}, b"")


@pytest.mark.parametrize("addresses", [[HERE, "127.0.0.2"], ["127.0.0.2", HERE], [HERE, "::1"], [HERE, "fe80::1%1"]])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_fault_50_one_bad_address_among_good_ones_refuses(addresses: list[str], scheme: str) -> None:
    """A name that leads to several addresses is refused if a single one of them is not allowed."""
    allowed = Allowed.of([f"{HERE}/32"])
    async with serving(says(b"")) as server, connect(allowed, timeout=2, resolve=leads_to(*addresses)) as egress:
        with pytest.raises(NotDelivered, match=r"must be https|not public|network card"):
            await egress.post(f"{scheme}://two.test:{server.port}/", {}, b"")
    assert server.connections == 0


async def test_fault_50_a_name_is_not_resolved_again_after_the_check() -> None:
    """A name that changes between the check and the connection gains nothing: what was checked is connected to."""
    asked: list[str] = []

    async def rebinds(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if asked[1:] else [HERE]

    allowed = Allowed.of([HERE])
    async with serving(says(b"")) as server, connect(allowed, timeout=2, resolve=rebinds) as egress:
        for _ in range(2):
            assert (await egress.post(f"http://rebinds.test:{server.port}/", {}, b"")).http_status == 200
    assert (asked, server.connections) == (["rebinds.test"], 1)


async def test_fault_50_a_new_connection_is_checked_again() -> None:
    """A name that leads inside by the time of the next connection is refused then."""
    asked: list[str] = []

    async def rebinds(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if asked[1:] else [HERE]

    names = _Names(rebinds, seconds=0.05)
    assert await names.addresses("rebinds.test", 80) == [HERE]
    assert await names.addresses("rebinds.test", 80) == [HERE]
    await until(lambda: not names.lookups)
    assert await names.addresses("rebinds.test", 80) == ["127.0.0.2"]
    assert _Names(rebinds)._seconds <= 10


async def test_fault_50_a_redirect_is_not_followed() -> None:
    """A redirect is an answer like any other: nothing goes to where it points, and no cookie comes back."""
    async with (
        serving(is_silent) as inside,
        serving(
            says(b"", "307 Temporary Redirect", f"Location: http://{HERE}:{inside.port}/", "Set-Cookie: a=b; Path=/")
        ) as server,
        connect(HOOKS, timeout=5, resolve=leads_to(HERE)) as egress,
    ):
        for _ in range(2):
            assert (await egress.post(f"http://hooks.test:{server.port}/", {}, b"")).http_status == 307
    assert inside.connections == 0
    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


async def test_fault_50_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names gets nothing: it would resolve the name itself."""
    async with serving(says(b"")) as server, serving(says(b"")) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{HERE}:{proxy.port}")
        await posted(server)
    assert (len(server.requests), proxy.connections) == (1, 0)


@pytest.mark.parametrize(
    ("url", "entries"),
    [
        ("http://hooks.internal:8080/in", ["Hooks.Internal."]),
        ("http://HOOKS.internal./in", ["hooks.internal"]),
        ("http://localhost:8080", ["localhost"]),
        ("http://10.1.2.3", ["10.0.0.0/8"]),
        ("http://[::ffff:10.1.2.3]?a=b", ["10.1.2.3"]),
        ("https://167838211", ["127.0.0.0/8", "10.0.0.0/8"]),
        ("https://[fd00::1]:8443/", ["fd00::/8"]),
        ("https://[2002:7f00:1::]/", ["2002::/16"]),
        ("HTTPS://xn--bcher-kva.example/", []),
        ("https://hooks.example./a//b/../c?d=https://e@f", []),
        ("https://93.184.216.34/", []),
        ("https://[2606:2800:220:1::1]/", []),
        ("https://_a.under-score.example:65535", []),
    ],
)
def test_url_that_is_right(url: str, entries: list[str]) -> None:
    """What is public or listed is accepted."""
    check_url(url, Allowed.of(entries))


@pytest.mark.parametrize(
    ("url", "entries"),
    [
        ("http://hooks.example/", []),
        ("http://93.184.216.34/", []),
        ("http://other.internal/", ["hooks.internal"]),
        ("http://a.hooks.internal/", ["hooks.internal"]),
        ("http://hooks.corp/", ["10.0.0.0/8"]),
        ("http://localhost/", ["127.0.0.0/8"]),
    ],
)
def test_http_that_is_not_listed(url: str, entries: list[str]) -> None:
    """Without TLS a URL is refused unless its host is listed, and hosts do not stand for those below them."""
    with pytest.raises(UrlRefused, match="must be https"):
        check_url(url, Allowed.of(entries))


@pytest.mark.parametrize(
    ("url", "why"),
    [("https://user:pass@hooks.test/", "user name"), ("https://hooks.test#a", "fragment"), ("https://", "name a host")],
)
def test_refusal_says_why(url: str, why: str) -> None:
    """A refusal says what is wrong."""
    with pytest.raises(UrlRefused, match=why):
        check_url(url, HOOKS)


@pytest.mark.parametrize("entry", ["", "hooks.test:80", "http://hooks.test", "10.0.0.0/33", "1.2.3.4.5"])
def test_entry_that_lists_nothing(entry: str) -> None:
    """What is neither host, address nor network cannot be listed; the error does not repeat it."""
    with pytest.raises(ValueError, match=r"^must be host names, addresses or networks, without scheme and port$"):
        Allowed.of([entry])


async def test_http_by_the_addresses() -> None:
    """A name that is not listed gets http where all its addresses are listed, and nothing where they are public."""
    async with serving(says(b"")) as server:
        assert (await posted(server, Allowed.of(["127.0.0.0/8"]))).http_status == 200
        async with connect(NOBODY, timeout=2, resolve=leads_to("93.184.216.34")) as egress:
            with pytest.raises(NotDelivered, match="must be https"):
                await egress.post("http://public.test/", {}, b"")
