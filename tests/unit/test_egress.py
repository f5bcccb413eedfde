"""The way out for notifications: where it does not go, and what it does not take for an answer."""

import asyncio
import gzip
import shutil
import ssl
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from app.addresses import Allowed
from app.egress import LOOKUPS, NotDelivered, Reply, by_getaddrinfo, connect

from .outside import CLIENTS_WAY_IN, HEAD, HERE, HOOKS, NOBODY, leads_to, posted, repeats
from .servers import Behaviour, Server, bound, dribbles, floods, is_silent, resets, says, sends, serving, until

pytestmark = pytest.mark.anyio


async def test_request() -> None:
    """A notification is one POST with the client's own path, its headers and its body, and asks for no compression."""
    async with serving(says(b"thanks")) as server:
        assert await posted(server) == Reply(200, None)
    (request,) = server.requests
    assert (request.line, request.body) == ("POST /in?a=b%20c HTTP/1.1", b"{}")
    assert request.headers == {
        **CLIENTS_WAY_IN,
        "host": f"hooks.test:{server.port}",
        "accept-encoding": "identity",
        "content-length": "2",
    }


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for hooks.test that nobody has signed, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing: that TLS is verified was NOT tested")
    key, chain = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "chain.pem"))
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"]
    subprocess.run([openssl, "req", *kind, *names, "-keyout", key, "-out", chain], check=True, capture_output=True)
    chain.write_bytes(key.read_bytes() + chain.read_bytes())
    return chain


async def test_certificate_is_verified(pem: Path) -> None:
    """TLS goes on with the URL's host: who cannot prove to be that gets no request, and who can does."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    named: list[str | None] = []
    tls.sni_callback = lambda _, name, __: named.append(name)
    trusting = ssl.create_default_context(cafile=pem)
    allowed = Allowed.of(["127.0.0.0/8"])
    async with serving(says(b""), tls=tls) as server:
        with pytest.raises(NotDelivered, match="no TLS"):
            await posted(server, scheme="https")
        async with connect(allowed, timeout=5, resolve=leads_to(HERE), tls=trusting) as egress:
            for other in ("other.test", HERE):
                with pytest.raises(NotDelivered, match="no TLS"):
                    await egress.post(f"https://{other}:{server.port}/", {}, b"")
            assert not server.requests
            assert (await egress.post(f"https://Hooks.test.:{server.port}/", {}, b"")).http_status == 200
    assert named == ["hooks.test", "other.test", None, "hooks.test"]


async def test_connection_cut_in_the_handshake_is_closed() -> None:
    """A receiver that says nothing in the handshake cannot keep connections of ours open beyond the deadline."""
    closed = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read()  # up to the end
        closed.set()
        writer.close()

    sock = bound()
    async with (
        await asyncio.start_server(handle, sock=sock),
        connect(HOOKS, timeout=0.5, resolve=leads_to(HERE)) as out,
    ):
        with pytest.raises(NotDelivered, match=r"within 0\.5 s"):
            await out.post(f"https://hooks.test:{sock.getsockname()[1]}/", {}, b"")
        async with asyncio.timeout(5):
            await closed.wait()


@pytest.mark.parametrize(
    "behave",
    [
        is_silent,
        dribbles(HEAD + b"X: "),
        repeats(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["silent", "head-dribbles", "hints-without-end"],
)
async def test_fault_51_a_slow_answer_is_cut_at_the_deadline(behave: Behaviour) -> None:
    """However slowly an answer comes in, one deadline ends the whole POST."""
    async with serving(behave) as server:
        began = time.monotonic()
        with pytest.raises(NotDelivered, match=r"within 0\.7 s"):
            await posted(server, within=0.7)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "behave",
    [
        floods(HEAD + b"\r\n"),
        floods(HEAD + b"Content-Length: 9999999999\r\n\r\n"),
        dribbles(HEAD + b"\r\n" + b"x" * 4096),
        dribbles(HEAD + b"Content-Length: 4000\r\n\r\n"),
        repeats(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        sends(HEAD + b"Content-Length: 9\r\n\r\n1", close=True),
    ],
    ids=["flood", "announced", "then-dribbles", "dribbles", "trailers", "cut-off"],
)
async def test_fault_51_an_answer_without_end_is_left_after_4_kb(behave: Behaviour) -> None:
    """An answer counts by its status, whatever becomes of its body, which is left after 4 kB or a second."""
    async with serving(behave) as server, asyncio.timeout(20):
        assert await posted(server, within=30) == Reply(200, None)


@pytest.mark.parametrize("body", [gzip.compress(bytes(1 << 24)), b"none at all"], ids=["bomb", "none"])
async def test_fault_51_an_answer_is_never_decompressed(body: bytes) -> None:
    """A gzip bomb stays what it is: no answer is decompressed."""
    async with serving(says(body, "200 OK", "Content-Encoding: gzip")) as server:
        assert await posted(server) == Reply(200, None)


@pytest.mark.parametrize(
    "behave",
    [
        floods(HEAD + b"X: "),
        repeats(HEAD, b"X: y\r\n"),
        floods(b""),
    ],
    ids=["one-header", "many-headers", "no-http"],
)
async def test_fault_51_a_head_without_end_is_cut(behave: Behaviour) -> None:
    """A head that does not end is cut by its size, long before the deadline."""
    async with serving(behave) as server, asyncio.timeout(20):
        with pytest.raises(NotDelivered, match="cannot be read"):
            await posted(server, within=30)


@pytest.mark.parametrize(
    "behave",
    [
        resets,
        sends(b"", close=True),
        sends(HEAD, close=True),
        sends(b"HTTP/1.1 2 OK\r\n\r\n", close=True),
        sends(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", close=True),
    ],
)
async def test_answer_that_is_none(behave: Behaviour) -> None:
    """What is cut off or cannot be read is no answer, and says so in one exception."""
    async with serving(behave) as server:
        with pytest.raises(NotDelivered, match="cut off or cannot be read"):
            await posted(server)


async def test_nobody_there() -> None:
    """A refused connection and a name that leads nowhere are no delivery, and not by the deadline."""
    with bound() as sock, pytest.raises(NotDelivered, match="nobody takes"):
        await posted(Server(sock.getsockname()[1]), within=60)
    async with connect(NOBODY, timeout=60, resolve=leads_to()) as egress:
        with pytest.raises(NotDelivered, match="leads nowhere"):
            await egress.post("https://nowhere.test/", {}, b"")


async def test_next_address_is_tried() -> None:
    """Where the first address takes no connection the next one may."""
    async with (
        serving(says(b"")) as server,
        connect(Allowed.of(["hooks.test"]), timeout=10, resolve=leads_to("::1", "127.0.0.3", HERE)) as egress,
    ):
        assert (await egress.post(f"http://hooks.test:{server.port}/", {}, b"")).http_status == 200


async def test_system_resolves() -> None:
    """The system's own resolver is asked, in no thread of asyncio's executor; a name that is none raises nothing."""
    assert HERE in await by_getaddrinfo("localhost", 80)
    async with serving(says(b"")) as server, connect(Allowed.of(["localhost"]), timeout=20) as egress:
        assert (await egress.post(f"http://localhost:{server.port}/", {}, b"")).http_status == 200
        with pytest.raises(NotDelivered, match=r"leads nowhere|within 20 s"):
            await egress.post("https://nowhere.invalid/", {}, b"")


async def test_one_look_up_for_all() -> None:
    """However many wait for a name, and whoever of them is cancelled, one thread resolves it."""
    asked: list[str] = []
    go = asyncio.Event()

    async def resolve(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        await go.wait()
        return [HERE]

    async with serving(says(b"")) as server, connect(HOOKS, timeout=20, resolve=resolve) as egress:
        url = f"http://hooks.test:{server.port}/"
        posts = [asyncio.create_task(egress.post(url, {}, b"")) for _ in range(50)]
        await until(lambda: bool(asked))
        posts[0].cancel()
        await asyncio.wait(posts[:1])
        go.set()
        outcomes = await asyncio.gather(*posts[1:])
    assert {outcome.http_status for outcome in outcomes} == {200}
    assert asked == ["hooks.test"]


async def test_dead_names_delay_no_other() -> None:
    """Deliveries that wait for names whose servers are dead leave the others their look-ups and their connections."""
    asked: list[str] = []

    async def resolve(host: str, _: int) -> Sequence[str]:
        asked.append(host)
        if host.startswith("dead"):
            await asyncio.sleep(60)
        return [HERE]

    dead = [f"https://dead{number % (LOOKUPS - 1)}.test/" for number in range(300)]
    async with serving(says(b"")) as server, connect(HOOKS, timeout=30, resolve=resolve) as egress:
        waiting = [asyncio.create_task(egress.post(url, {}, b"")) for url in dead]
        await until(lambda: len(asked) == LOOKUPS - 1)
        async with asyncio.timeout(10):
            assert (await egress.post(f"http://hooks.test:{server.port}/", {}, b"")).http_status == 200
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_deadline_covers_the_look_up() -> None:
    """The deadline ends a POST whose name is still being resolved."""

    async def resolve(_: str, __: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    async with connect(NOBODY, timeout=0.3, resolve=resolve) as egress:
        with pytest.raises(NotDelivered, match=r"within 0\.3 s"):
            await egress.post("https://slow.test/", {}, b"")


async def test_pool_outlives_posts_that_were_cut() -> None:
    """After posts that were cancelled, twice or at the deadline, every connection of the pool is there again."""
    silent = True

    async def behave(writer: asyncio.StreamWriter) -> None:
        if silent:
            await dribbles(HEAD + b"X: ")(writer)
        await says(b"")(writer)

    async with serving(behave) as server, connect(HOOKS, timeout=2, resolve=leads_to(HERE)) as egress:
        url = f"http://hooks.test:{server.port}/"
        for turn in range(20):
            posts = [asyncio.create_task(egress.post(url, {}, b"")) for _ in range(10)]
            for post in posts:
                await asyncio.sleep(0.002)
                post.cancel()
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            for post in posts:
                post.cancel()
            await asyncio.gather(*posts, return_exceptions=True)
        late = await asyncio.gather(*(egress.post(url, {}, b"") for _ in range(10)), return_exceptions=True)
        assert {type(outcome) for outcome in late} == {NotDelivered}
        silent = False
        replies = await asyncio.gather(*(egress.post(url, {}, b"") for _ in range(20)))
    assert set(replies) == {Reply(200, None)}


async def test_cancellation_is_not_swallowed() -> None:
    """Whoever cancels a POST sees it cancelled."""
    async with serving(is_silent) as server:
        post = asyncio.create_task(posted(server))
        await until(lambda: bool(server.requests))
        post.cancel()
        with pytest.raises(asyncio.CancelledError):
            await post


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("0", 0), ("120", 120), ("86401", 86_400), ("9" * 5000, 86_400), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)),
        *(("Fri, 31 Dec 9999 23:59:59 GMT", 86_400), ("Fri, 31 Dec 9999 23:59:59 -2359", 86_400)),
        *(("", None), ("-1", None), ("1.5", None), ("soon", None), ("nan", None), ("²", None), ("1" * 9 + "x", None)),
        *(("Fri, 99 Dec 9999 99:99:99 GMT", None), ("Mon, 01 Jan 2024 00:00:00 +99999999999", None)),
    ],
)
async def test_retry_after(value: str, seconds: float | None) -> None:
    """What a receiver says of when to come again is taken as seconds or a date, a day at most, and nonsense is not."""
    head = f"HTTP/1.1 503 No\r\nContent-Length: 0\r\nretry-AFTER: {value}\r\n\r\n"
    async with serving(sends(head.encode("latin-1"))) as server:
        assert await posted(server) == Reply(503, seconds)


async def test_retry_after_a_date() -> None:
    """A date is that many seconds away, with or without a time zone."""
    for zone in (UTC, None):
        date = format_datetime((datetime.now(UTC) + timedelta(seconds=100)).replace(tzinfo=zone))
        async with serving(says(b"", "429 Too Many", f"Retry-After: {date}")) as server:
            reply = await posted(server)
        assert reply.retry_after is not None
        assert 60 < reply.retry_after <= 100
