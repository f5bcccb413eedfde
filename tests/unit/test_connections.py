"""The client's connections: those that do not come about, that lie idle, that are cut; and certificates."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack

import pytest

from app.kpay.client import CONNECT_ATTEMPTS, Answer, Endpoint, NotSent, connect

from .servers import PENDING, Server, bound, is_silent, not_sent, says, serving, until

pytestmark = pytest.mark.anyio

ORDER = {"refid": "R1"}


async def test_fault_24_a_refused_connection_is_tried_three_times() -> None:
    """Where nobody listens nothing was sent, which is known after three attempts."""
    before = not_sent("pay")
    with bound() as sock:
        async with connect(Server(sock.getsockname()[1]).endpoint(timeout=10)) as kpay:
            with pytest.raises(NotSent):
                await kpay.pay(ORDER)
    assert not_sent("pay") - before == CONNECT_ATTEMPTS


async def test_refused_question_is_not_tried_again() -> None:
    """A checkstatus that finds nobody waits for the next check."""
    with bound() as sock:
        async with connect(Server(sock.getsockname()[1]).endpoint()) as kpay:
            before = not_sent("checkstatus")
            with pytest.raises(NotSent):
                await kpay.checkstatus("R1")
    assert not_sent("checkstatus") - before == 1


async def test_fault_24_a_server_that_comes_up_meanwhile_gets_one_request() -> None:
    """A request whose first attempts found nobody is sent once when somebody is there, and not again."""
    sock = bound()
    async with connect(Server(sock.getsockname()[1]).endpoint(timeout=10)) as kpay:
        before = not_sent("pay")
        paying = asyncio.create_task(kpay.pay(ORDER))
        await until(lambda: not_sent("pay") > before)
        async with serving(says(PENDING), sock=sock) as server:
            answer = await paying
    assert answer.message is not None
    assert len(server.requests) == 1


async def test_connection_that_hangs() -> None:
    """Where connections are neither taken nor refused nothing was sent, within the deadline."""
    with ExitStack() as stack:
        sock = stack.enter_context(bound())
        sock.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(sock.getsockname())
        async with connect(Server(sock.getsockname()[1]).endpoint(timeout=4)) as kpay:
            began = time.monotonic()
            with pytest.raises(NotSent):
                await kpay.pay(ORDER)
            assert time.monotonic() - began < 4.5


async def test_fault_24_a_short_deadline_does_not_turn_a_refusal_into_doubt() -> None:
    """Also where the deadline passes between two attempts nothing was sent, and that is what is said, in time."""
    with bound() as sock:
        async with connect(Server(sock.getsockname()[1]).endpoint(timeout=2)) as kpay:
            began = time.monotonic()
            outcomes = await asyncio.gather(*(kpay.pay(ORDER) for _ in range(20)), return_exceptions=True)
            took = time.monotonic() - began
    assert {type(outcome) for outcome in outcomes} == {NotSent}
    assert took < 5


async def test_name_that_is_not_there() -> None:
    """Where K-Pay's name leads nowhere nothing was sent."""
    async with connect(Endpoint("https://kpay.invalid/", "user", "password")) as kpay:
        with pytest.raises(NotSent):
            await kpay.checkstatus("R1")


async def test_full_pool_is_not_sent() -> None:
    """A request that gets no connection because all are in use was not sent."""
    async with serving(is_silent) as server, connect(server.endpoint(timeout=4), checks=0, payments=1) as kpay:
        first = asyncio.create_task(kpay.pay({"refid": "R1"}))
        await until(lambda: bool(server.requests))
        with pytest.raises(NotSent):
            await kpay.pay({"refid": "R2"})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert len(server.requests) == 1


async def test_checks_leave_the_payments_their_connections() -> None:
    """However many payments are asked about at once, saved cards and a payment request have a connection."""
    async with serving(is_silent) as server, connect(server.endpoint(timeout=4), checks=1, payments=1) as kpay:
        checks = [asyncio.create_task(kpay.checkstatus(f"R{number}")) for number in range(5)]
        await until(lambda: len(server.requests) == 3)
        listing = asyncio.create_task(kpay.tokenlist({"refid": "R8"}))
        await until(lambda: len(server.requests) == 4)
        paying = asyncio.create_task(kpay.pay({"refid": "R9"}))
        await until(lambda: len(server.requests) == 5)
        for task in (*checks, listing, paying):
            task.cancel()
        await asyncio.gather(*checks, listing, paying, return_exceptions=True)
    assert [request.json["action"] for request in server.requests] == ["checkstatus"] * 3 + ["tokenlist", "pay"]


async def test_pool_outlives_calls_that_were_cut() -> None:
    """After 300 calls that were cancelled or timed out every connection of the pool is there again."""
    silent = True

    async def behave(writer: asyncio.StreamWriter) -> None:
        await (is_silent(writer) if silent else says(PENDING)(writer))

    async with serving(behave) as server, connect(server.endpoint(timeout=5), checks=20, payments=0) as kpay:
        calls = [asyncio.create_task(kpay.checkstatus(f"R{number}")) for number in range(300)]
        for number, call in enumerate(calls):
            if number % 3:
                asyncio.get_running_loop().call_later(number % 20 / 20, call.cancel)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        assert len(server.requests) >= 20
        silent = False
        answers = await asyncio.gather(*(kpay.checkstatus(f"S{number}") for number in range(20)))
        assert all(answer.message for answer in answers)


async def test_connection_is_used_again() -> None:
    """Calls one after another share a connection."""
    async with serving(says(PENDING)) as server, connect(server.endpoint()) as kpay:
        for _ in range(3):
            await kpay.checkstatus("R1")
    assert (server.connections, len(server.requests)) == (1, 3)


@pytest.mark.parametrize("limit", [0.3, 2.2], ids=["closed-meanwhile", "just-being-closed"])
async def test_idle_connection_brings_no_doubt(limit: float) -> None:
    """No request goes into a connection that has lain idle for 2 s, nor into one that the server has closed before."""
    last: dict[asyncio.StreamWriter, float] = {}
    loop = asyncio.get_running_loop()

    async def behave(writer: asyncio.StreamWriter) -> None:
        if loop.time() - last.get(writer, loop.time()) > limit:
            writer.close()  # the request crossed with the close
            return
        last[writer] = loop.time()
        await says(PENDING)(writer)
        if limit < 1:
            loop.call_later(limit, writer.close)

    async with serving(behave) as server, connect(server.endpoint()) as kpay:
        await kpay.pay(ORDER)
        await asyncio.sleep(limit + 0.2)
        await kpay.pay(ORDER)
    assert (server.connections, len(server.requests)) == (2, 2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Make a certificate for 127.0.0.1 that nobody has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing: that TLS is verified was NOT tested")
    folder = tmp_path_factory.mktemp("tls")
    # An elliptic curve's key takes milliseconds to make.
    key, chain = folder / "key.pem", folder / "chain.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run([openssl, "req", *kind, *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


async def test_fault_32_a_certificate_is_verified(certificate: ssl.SSLContext) -> None:
    """A server that cannot prove to be K-Pay gets neither a request nor the credentials."""
    async with serving(says(PENDING), tls=certificate) as server, connect(server.endpoint()) as kpay:
        with pytest.raises(NotSent):
            await kpay.checkstatus("R1")
    assert server.connections == 0
    assert not server.requests


async def test_fault_32_a_server_without_tls_gets_nothing() -> None:
    """A server that speaks plain HTTP on K-Pay's port gets no request."""
    async with serving(says(PENDING)) as server:
        server.scheme = "https"
        async with connect(server.endpoint(timeout=2)) as kpay:
            with pytest.raises(NotSent):
                await kpay.checkstatus("R1")
    assert not server.requests
