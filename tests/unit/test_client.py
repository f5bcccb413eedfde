"""The client of K-Pay against real sockets: what it sends, what it takes for an answer, and what stays in doubt."""

import base64
import gzip
import json
import ssl
import time
import tracemalloc
import zlib
from collections.abc import Callable

import httpcore2
import pytest

from app.kpay.client import MAX_BODY, Endpoint, InDoubt, KPay, connect

from .servers import (
    PENDING,
    Behaviour,
    dribbles,
    floods,
    is_silent,
    resets,
    says,
    sends,
    serving,
    then_close,
)

pytestmark = pytest.mark.anyio

ORDER = {"refid": "R1", "amount": 4200, "cname": "Kanéza"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def test_request() -> None:
    """A payment request is one POST of JSON with its action, Basic authorization, and no key where there is none."""
    async with serving(says(PENDING)) as server, connect(server.endpoint()) as kpay:
        answer = await kpay.pay(ORDER)
    (request,) = server.requests
    assert request.line == "POST / HTTP/1.1"
    assert request.json == {"action": "pay", **ORDER}
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Basic {base64.b64encode('user:pässword'.encode()).decode()}"
    assert "kpay-key" not in request.headers
    assert answer.http_status == 200
    assert answer.message is not None
    assert (answer.message.tid, answer.message.retcode) == ("A1", "0")


async def test_question() -> None:
    """A checkstatus names the refid alone; the key goes along where there is one."""
    async with serving(says(PENDING)) as server, connect(server.endpoint(key="s3cret")) as kpay:
        await kpay.checkstatus("R1")
    (request,) = server.requests
    assert request.json == {"action": "checkstatus", "refid": "R1"}
    assert request.headers["kpay-key"] == "s3cret"


BROKEN: dict[str, Behaviour] = {
    "closes": sends(b"", close=True),
    "resets": resets,
    "is-silent": is_silent,
    "dribbles-its-head": dribbles(b"HTTP/1.1 200 OK\r\nX: "),
    "dribbles-its-body": dribbles(HEAD + b"Content-Length: 60000\r\n\r\n"),
    "dribbles-without-a-length": dribbles(HEAD + b"\r\n{"),
    "cuts-its-head": sends(b"HTTP/1.1 200 OK\r\nContent-", close=True),
    "cuts-its-body": then_close(says(b'{"retcode":0}', length=100)),
    "cuts-a-chunk": sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", close=True),
    "sends-a-broken-chunk": sends(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
    "sends-no-http": sends(b"\x00\x01 220 smtp ready\r\n\r\n", close=True),
    "sends-endless-headers": floods(b"HTTP/1.1 200 OK\r\nX: "),
    "sends-garbage-as-gzip": says(b"\x1f\x8bgarbage", "200 OK", "Content-Encoding: gzip"),
    "continues-for-ever": sends(b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("behave", BROKEN.values(), ids=BROKEN)
async def test_fault_24_half_an_answer_leaves_the_outcome_open(behave: Behaviour) -> None:
    """A request whose answer does not come whole is in doubt within the deadline, and is sent once."""
    async with serving(behave) as server, connect(server.endpoint(timeout=2)) as kpay:
        began = time.monotonic()
        with pytest.raises(InDoubt) as caught:
            await kpay.pay(ORDER)
        assert time.monotonic() - began < 6
    assert len(server.requests) == server.connections == 1
    assert "pässword" not in repr(caught.getrepr(chain=True))


@pytest.mark.parametrize("name", ["closes", "is-silent", "dribbles-its-body", "cuts-its-body"])
async def test_question_without_an_answer(name: str) -> None:
    """A checkstatus keeps the same deadline, and is put once too."""
    async with serving(BROKEN[name]) as server, connect(server.endpoint(timeout=2)) as kpay:
        began = time.monotonic()
        with pytest.raises(InDoubt):
            await kpay.checkstatus("R1")
        assert time.monotonic() - began < 6
    assert len(server.requests) == 1


@pytest.mark.parametrize("behave", [sends(b"", close=True), resets], ids=["closes", "resets"])
async def test_fault_24_hanging_up_before_the_request_leaves_the_outcome_open(behave: Behaviour) -> None:
    """A connection that ends before the request was read is in doubt too: the request may have been on its way."""
    async with serving(behave, reads=False) as server, connect(server.endpoint()) as kpay:
        with pytest.raises(InDoubt):
            await kpay.pay(ORDER)
    assert server.connections == 1


@pytest.mark.parametrize("status", ["201 Created", "400 Bad Request", "401 No", "500 Oops", "503 Later"])
async def test_any_status_answers(status: str) -> None:
    """K-Pay's words count on whatever HTTP status they come."""
    async with serving(says(PENDING, status)) as server, connect(server.endpoint()) as kpay:
        answer = await kpay.pay(ORDER)
    assert answer.http_status == int(status[:3])
    assert answer.message is not None
    assert answer.message.retcode == "0"


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[]", b"\xff\xfe\x00"], ids=ascii)
async def test_fault_28_an_unreadable_answer_is_kept_and_says_nothing(body: bytes) -> None:
    """An answer that cannot be read is an answer without a message; its bytes and its type are kept."""
    async with serving(says(body, "502 Bad", "Content-Type: text/html")) as server, connect(server.endpoint()) as kpay:
        answer = await kpay.pay(ORDER)
    assert (answer.http_status, answer.content_type) == (502, "text/html")
    assert (answer.body, answer.message) == (body, None)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_fault_32_a_redirect_of_any_kind_is_not_followed(status: str) -> None:
    """A request for money goes where it was sent, and nowhere else."""
    async with serving(says(PENDING)) as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere.port}/"
        async with serving(says(b"", status, location)) as server, connect(server.endpoint()) as kpay:
            answer = await kpay.pay(ORDER)
    assert (answer.http_status, answer.message) == (int(status[:3]), None)
    assert (len(server.requests), elsewhere.connections) == (1, 0)


@pytest.mark.parametrize("size", [MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 5 * MAX_BODY])
async def test_body_is_cut(size: int) -> None:
    """Of a body 64 KiB are kept, and what stands there is read."""
    body = b'{"retcode":0}'.ljust(size)
    async with serving(says(body)) as server, connect(server.endpoint()) as kpay:
        answer = await kpay.pay(ORDER)
        assert answer.body == body[:MAX_BODY]
        assert answer.message is not None
        assert (await kpay.checkstatus("R1")).message is not None


async def test_endless_body_is_cut() -> None:
    """A body without end is left after 64 KiB."""
    async with serving(floods(HEAD + b'\r\n{"retcode":0}')) as server, connect(server.endpoint()) as kpay:
        assert len((await kpay.pay(ORDER)).body) == MAX_BODY


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names does not get to see K-Pay's credentials."""
    async with serving(says(PENDING)) as proxy, serving(says(PENDING)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with connect(server.endpoint()) as kpay:
            await kpay.pay(ORDER)
    assert (proxy.connections, len(server.requests)) == (0, 1)


async def test_whatever_breaks_a_call_leaves_it_in_doubt() -> None:
    """An error that the HTTP library does not know as its own (a TLS record that is none) is doubt, and no crash."""

    class Broken(httpcore2.AsyncNetworkBackend):
        async def connect_tcp(self, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
            raise ssl.SSLError("record layer failure")

    async with httpcore2.AsyncConnectionPool(network_backend=Broken()) as pool:
        kpay = KPay([pool], Endpoint("https://pay.example.rw/", "user", "password"), 1)
        with pytest.raises(InDoubt):
            await kpay.pay({"refid": "R1"})
        with pytest.raises(InDoubt):
            await kpay.checkstatus("R1")


BOMB = gzip.compress(b'{"retcode":0}'.ljust(1 << 26))


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
    ids=["gzip", "deflate", "identity"],
)
async def test_an_answer_that_was_encoded_all_the_same_is_read(coding: str, encode: Callable[[bytes], bytes]) -> None:
    """No encoding is asked for; where a server, or a proxy before it, sends one, the words count and are kept."""
    words = json.dumps(PENDING).encode()
    behave = says(encode(words), "200 OK", f"Content-Encoding: {coding}")
    async with serving(behave) as server, connect(server.endpoint()) as kpay:
        answer = await kpay.pay(ORDER)
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert (answer.body, answer.message and answer.message.tid) == (words, "A1")


async def test_a_bomb_is_not_inflated() -> None:
    """Of what was encoded, too, 64 KiB are read."""
    async with serving(says(BOMB, "200 OK", "Content-Encoding: gzip")) as server, connect(server.endpoint()) as kpay:
        tracemalloc.start()
        answer = await kpay.pay(ORDER)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert answer.body == b'{"retcode":0}'.ljust(MAX_BODY)
    assert most < 8 * 2**20


async def test_no_cookie_is_kept() -> None:
    """Payments that have nothing to do with each other do not share a session at K-Pay."""
    cookie = "Set-Cookie: session=of-another; Path=/"
    async with serving(says(PENDING, "200 OK", cookie)) as server, connect(server.endpoint()) as kpay:
        await kpay.pay({"refid": "R1"})
        await kpay.pay({"refid": "R2"})
    assert not [request for request in server.requests if "cookie" in request.headers]
