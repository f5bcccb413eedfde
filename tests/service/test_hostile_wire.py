"""Requests that are odd below HTTP's surface: no end, too slow, two lengths, 20,000 headers, bare bytes, an upgrade."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.support import Json, Service, at_once, bodies, hush, query, spoken

LONGEST = 5.0
"""Seconds that any answer may take."""
DEADLINE = 10.0
"""Seconds that a head and a body each may take."""
DOORS = ("postback", "start")


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def target(service: Service) -> Json:
    """Start the payment that all of this is about."""
    return service.start("250780000005")


@pytest.fixture(scope="module")
def heads(service: Service, target: Json) -> dict[str, str]:
    """Return how a request begins at each door: the listener and the API."""
    key = service.new_key("odd")
    return {
        "postback": f"POST {service.returl(target['refid'])} HTTP/1.1\r\nHost: x\r\n",
        "start": f"POST /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n",
        "keyless": "POST /v1/payments HTTP/1.1\r\nHost: x\r\n",
        "read": f"GET /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n",
    }


def connected(service: Service) -> socket.socket:
    """Return a bare connection to the service."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), LONGEST)


def heard_to_the_end(line: socket.socket) -> bytes:
    """Return all that is said until the connection is closed."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while part := line.recv(65_536):
            heard += part
    return heard


def nothing_came_of_it(service: Service, target: Json) -> None:
    """Check that no postback was kept and no payment recorded."""
    assert bodies(service, target["refid"]) == []
    assert not query(service.database_url, "SELECT FROM payments WHERE client = 'odd'")
    assert service.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("door", DOORS)
def test_fault_14_a_chunked_body_without_end(door: str, heads: dict[str, str], service: Service, target: Json) -> None:
    """A body in chunks that never end is cut once 64 KiB are there, within seconds, and nothing comes of it."""
    began, sent = time.monotonic(), 0
    with connected(service) as endless:
        endless.sendall(f"{heads[door]}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            while time.monotonic() - began < LONGEST:
                endless.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                sent += 1024
        except OSError:
            pass
        assert time.monotonic() - began < LONGEST
    assert sent < 20_000_000
    nothing_came_of_it(service, target)


def drips(heads: dict[str, str]) -> dict[str, tuple[bytes, bytes]]:
    """Return senders that never finish: how each begins, and what it adds four times a second."""
    chunked, long = "Transfer-Encoding: chunked\r\n\r\n", "Content-Length: 60000\r\n\r\n"
    slow = {f"head of a {door}": (f"{heads[door]}X-Slow: ", b"x") for door in heads}
    slow |= {f"body of a {door}": (heads[door] + long, b" ") for door in heads}
    slow |= {f"chunks of a {door}": (heads[door] + chunked, b"1\r\nx\r\n") for door in heads}
    slow |= {
        "nothing": ("", b""),
        "line by line": (heads["postback"], b"x-slow: 1\r\n"),
        "a second head": (f"{heads['read']}\r\n{heads['postback']}X-Slow: ", b"x"),
        "a second body": (f"{heads['read']}\r\n{heads['postback']}{long}", b" "),
    }
    return {name: (begin.encode(), drop) for name, (begin, drop) in slow.items()}


def drip(service: Service, begin: bytes, drop: bytes) -> tuple[float, bytes]:
    """Send slowly until the connection is closed, and return after how many seconds that was and what was said."""
    began, heard = time.monotonic(), b""
    with connected(service) as line, contextlib.suppress(ConnectionError):
        line.sendall(begin)
        line.settimeout(0.25)
        while time.monotonic() - began < 2 * DEADLINE:
            line.sendall(drop)
            with contextlib.suppress(TimeoutError):
                part = line.recv(65_536)
                if not part:
                    break
                heard += part
    return time.monotonic() - began, heard


def test_fault_15_what_dribbles_in_is_cut(heads: dict[str, str], service: Service, target: Json) -> None:
    """A head or a body that dribbles in is cut after ten seconds each, at every door, and others are served."""
    ends: dict[str, tuple[float, bytes]] = {}

    def run(name: str, begin: bytes, drop: bytes) -> None:
        ends[name] = drip(service, begin, drop)

    slow = drips(heads)
    threads = [threading.Thread(target=run, args=(name, *how)) for name, how in slow.items()]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert httpx2.get(f"{service.url}/healthz", trust_env=False, timeout=LONGEST).status_code == 200
        time.sleep(0.5)
    assert {name: end for name, end in ends.items() if end[0] > DEADLINE + LONGEST} == {}
    assert len(ends) == len(slow)
    for door in DOORS:
        assert ends[f"body of a {door}"][1].startswith(b"HTTP/1.1 408 ")
    nothing_came_of_it(service, target)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}\n",
        "Content-Length: -1\r\n\r\n{}",
        "Content-Length: 99999999999999999999999\r\n\r\n{}",
        "Content-Length: 0x2\r\n\r\n{}",
        "Transfer-Encoding: gzip\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["length_and_chunked", "chunked_and_length", "two_lengths", "negative", "huge", "hex", "gzip", "huge_chunk"],
)
def test_fault_56_a_body_of_two_lengths_is_no_request(
    framing: str, door: str, heads: dict[str, str], service: Service, target: Json
) -> None:
    """What two readers may cut in two ways is 400 as a whole, and no second request is found in it."""
    with connected(service) as smuggler:
        smuggler.sendall(f"{heads[door]}{framing}".encode())
        heard = heard_to_the_end(smuggler)
    assert heard.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 501 "))
    assert heard.count(b"HTTP/1.1 ") == 1
    nothing_came_of_it(service, target)


@pytest.mark.parametrize("door", DOORS)
def test_fault_14_20000_headers(door: str, heads: dict[str, str], service: Service, target: Json) -> None:
    """A request of 20,000 headers is refused, or cut off while it is still being sent; nothing comes of it."""
    many = "".join(f"x{number}: y\r\n" for number in range(20_000))
    heard = b""
    with connected(service) as wordy, contextlib.suppress(ConnectionError):
        wordy.sendall(f"{heads[door]}{many}Content-Length: 2\r\n\r\n{{}}".encode())
        heard = heard_to_the_end(wordy)
    assert heard == b"" or heard.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 431 "))
    nothing_came_of_it(service, target)


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /v1/payments/\xff HTTP/1.1",
        b"GET /v1/payments/\xc3\xa9?\xc3\xa9=\xff HTTP/1.1",
        b"GET /v1/payments/\0 HTTP/1.1",
        b"GET http://[::1/v1/payments HTTP/1.1",
        b"GET //// HTTP/1.1",
        b"GET /v1/payments HTTP/9.9",
        b"\xff\xff /v1/payments HTTP/1.1",
        b"* * *",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"CONNECT x:1 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ],
    ids=lambda line: repr(line)[2:-1][:30],
)
def test_fault_21_a_request_line_that_is_none(request_line: bytes, service: Service, heads: dict[str, str]) -> None:
    """A request line of bytes that mean nothing is answered by a 4xx, or cut off; never a 5xx, and no hang."""
    rest = heads["read"].partition("\r\n")[2].encode() + b"Connection: close\r\n\r\n"
    with connected(service) as odd:
        odd.sendall(request_line + b"\r\n" + rest)
        heard = heard_to_the_end(odd)
    assert heard == b"" or heard.startswith(b"HTTP/1.1 4"), heard[:200]
    assert service.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "value", [b"\xff", b"\xc3\xa9", b"\x01", b"a\0b", b"", b"\t", b"x" * 60_000, b"Bearer \xff", b"a\rb", b"a\n b"]
)
@pytest.mark.parametrize("door", ["postback", "start", "keyless", "read"])
def test_fault_21_a_header_that_is_none(
    door: str, value: bytes, service: Service, target: Json, heads: dict[str, str]
) -> None:
    """A header of bytes that mean nothing is answered by less than a 5xx, or cut off, and does no harm."""
    kept = bodies(service, target["refid"])
    for name in (b"Authorization", b"Idempotency-Key", b"Content-Type", b"X-Request-ID", b"X-Forwarded-For", b"Expect"):
        with connected(service) as odd:
            odd.sendall(heads[door].encode() + name + b": " + value + b"\r\n")
            odd.sendall(b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
            heard = heard_to_the_end(odd)
        # A machine that is full of tests is behind now and then, and says so.
        good = heard.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 4")) or b'"overloaded"' in heard
        assert heard == b"" or good, (name, heard[:200])
    assert set(bodies(service, target["refid"])) <= {*kept, b"{}"}
    assert service.http.get("/healthz").status_code == 200


def test_a_sender_that_offers_http_2_is_understood(service: Service) -> None:
    """A body is not lost where its sender offers HTTP/2 by `Upgrade`, as Java's own HttpClient does over http."""
    begun = service.start("250780000005")
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    body = json.dumps({"refid": begun["refid"], "statusid": "03"}).encode()
    (said,) = at_once(service.url, [spoken("POST", service.returl(begun["refid"]), body, **offer)])
    assert (said.status, said.json()["reply"], bodies(service, begun["refid"])) == (200, "OK", [body])
