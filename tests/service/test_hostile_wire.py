"""Requests to the listener that are odd below HTTP's surface: no end, two lengths, 20,000 headers, an upgrade."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import Json, Service, at_once, bodies, hush, spoken

LONGEST = 5.0
"""Seconds that any answer may take."""


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def target(service: Service) -> Json:
    """Start the payment that all of this is about."""
    return service.start("250780000005")


def connected(service: Service) -> socket.socket:
    """Return a bare connection to the service."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), LONGEST)


def test_a_chunked_body_without_end(service: Service, target: Json) -> None:
    """A sender of chunks that never ends is answered 413 once 64 KiB are there, and then cut."""
    head = f"POST {service.returl(target['refid'])} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    began, sent = time.monotonic(), 0
    with connected(service) as endless:
        endless.sendall(head.encode())
        try:
            while time.monotonic() - began < LONGEST:
                endless.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                sent += 1024
        except OSError:
            pass
        assert time.monotonic() - began < LONGEST
    assert sent < 20_000_000
    assert service.http.get("/healthz").status_code == 200


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
def test_a_body_of_two_lengths_is_no_request(framing: str, service: Service, target: Json) -> None:
    """What two readers may cut in two ways is 400 as a whole, and no second request is found in it."""
    with connected(service) as smuggler:
        smuggler.sendall(f"POST {service.returl(target['refid'])} HTTP/1.1\r\nHost: x\r\n{framing}".encode())
        heard = b""
        while part := smuggler.recv(65_536):
            heard += part
    assert heard.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 501 "))
    assert heard.count(b"HTTP/1.1 ") == 1


def test_20000_headers(service: Service, target: Json) -> None:
    """A request of 20,000 headers is refused, or cut off while it is still being sent; nothing of it is kept."""
    many = {f"x{number}": "y" for number in range(20_000)}
    kept = bodies(service, target["refid"])
    with contextlib.suppress(ConnectionError):
        (said,) = at_once(
            service.url, [spoken("POST", service.returl(target["refid"]), b"{}", **many)], seconds=LONGEST
        )
        assert said.status in {400, 413, 431}
    assert bodies(service, target["refid"]) == kept
    assert service.http.get("/healthz").status_code == 200


def test_a_sender_that_offers_http_2_is_understood(service: Service) -> None:
    """A body is not lost where its sender offers HTTP/2 by `Upgrade`, as Java's own HttpClient does over http."""
    begun = service.start("250780000005")
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    body = json.dumps({"refid": begun["refid"], "statusid": "03"}).encode()
    (said,) = at_once(service.url, [spoken("POST", service.returl(begun["refid"]), body, **offer)])
    assert (said.status, said.json()["reply"], bodies(service, begun["refid"])) == (200, "OK", [body])
