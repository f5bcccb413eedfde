"""Whom the service believes, where a request ends, and who writes its log: addresses, framing, lines."""

import json
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

import httpx2
import pytest

from tests.conftest import QUICK
from tests.support import (
    Service,
    Simulator,
    bodies,
    hush,
    payment,
    query,
    run_command,
    run_service,
)

NEVER_ACTS = "250780000005"
KPAY = "10.1.2.3"
"""An address that postbacks may come from."""
FENCED = QUICK | {"POSTBACK_ALLOWED_IPS": "10.0.0.0/8", "LOG_LEVEL": "DEBUG"}


@pytest.fixture(scope="module")
def fenced(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that takes postbacks from K-Pay's addresses alone and trusts no proxy."""
    with run_service(tmp_path_factory.mktemp("fenced"), new_database(), simulator, FENCED) as service:
        yield service


@pytest.fixture(scope="module")
def proxied(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run the same behind a proxy that it trusts, with a log for a console."""
    more = FENCED | {"TRUSTED_PROXIES": "127.0.0.0/8", "LOG_FORMAT": "console"}
    with run_service(tmp_path_factory.mktemp("proxied"), new_database(), simulator, more) as service:
        yield service


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


def post(service: Service, path: str, body: object, *headers: tuple[str, bytes | str]) -> httpx2.Response:
    """Send a JSON body with these headers and no key."""
    content = json.dumps(body).encode()
    return httpx2.post(
        f"{service.url}{path}",
        content=content,
        headers=[(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers],
        trust_env=False,
    )


CLAIMS: Sequence[Sequence[tuple[str, str]]] = (
    [("X-Forwarded-For", KPAY)],
    [("X-Forwarded-For", f"{KPAY}, 127.0.0.1")],
    [("X-Forwarded-For", KPAY), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "pay.example.rw")],
    [("X-Real-IP", KPAY), ("Forwarded", f"for={KPAY};proto=https"), ("True-Client-IP", KPAY)],
)


@pytest.mark.parametrize("claim", CLAIMS, ids=["for", "for_us", "for_and_proto", "others"])
def test_fault_55_nobody_is_who_he_says(claim: Sequence[tuple[str, str]], fenced: Service) -> None:
    """Without TRUSTED_PROXIES no header changes who a caller is: a postback that claims K-Pay's address is 403."""
    begun = fenced.start(NEVER_ACTS)
    assert (
        post(fenced, fenced.returl(begun["refid"]), {"refid": begun["refid"], "statusid": "01"}, *claim).status_code
        == 403
    )
    assert bodies(fenced, begun["refid"]) == []


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        ([("X-Forwarded-For", KPAY)], 200),
        ([("X-Forwarded-For", f"{KPAY}, 8.8.8.8")], 403),
        ([("X-Forwarded-For", f"{KPAY}, 8.8.8.8, 127.0.0.1")], 403),
        ([("X-Forwarded-For", KPAY), ("X-Forwarded-For", "8.8.8.8")], 403),
        ([("X-Forwarded-Proto", "https")], 403),
        ([("X-Real-IP", KPAY)], 403),
        ([], 403),
    ],
)
def test_fault_55_a_trusted_proxy_is_believed_from_the_right(
    claim: Sequence[tuple[str, str]], status: int, proxied: Service
) -> None:
    """Behind a trusted proxy the address that the proxy wrote counts, and none of those that its client had written."""
    begun = proxied.start(NEVER_ACTS)
    said = {"refid": begun["refid"], "tid": begun["tid"], "statusid": "03"}
    assert post(proxied, proxied.returl(begun["refid"]), said, *claim).status_code == status
    rows = query(proxied.database_url, "SELECT remote FROM bodies WHERE refid = $1 AND remote <> ''", begun["refid"])
    assert [row["remote"] for row in rows] == ([KPAY] if status == 200 else [])


SECOND = "GET /v1/payments HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
END = f"\r\n\r\n0\r\n\r\n{SECOND}"
FRAMINGS = {
    "length_and_chunks": f"Content-Length: 5\r\nTransfer-Encoding: chunked{END}",
    "chunks_and_length": f"Transfer-Encoding: chunked\r\nContent-Length: 5{END}",
    "two_lengths": f"Content-Length: 0\r\nContent-Length: {len(SECOND)}\r\n\r\n{SECOND}",
    "a_list_of_lengths": f"Content-Length: 0, {len(SECOND)}\r\n\r\n{SECOND}",
    "length_with_sign": f"Content-Length: +0\r\n\r\n{SECOND}",
    "length_with_space": f"Content-Length : 0\r\n\r\n{SECOND}",
    "coding_with_space": f"Transfer-Encoding : chunked\r\nContent-Length: 5{END}",
    "coding_with_tab": f"Transfer-Encoding:\tchunked\r\nContent-Length: 5{END}",
    "coding_with_vertical_tab": f"Transfer-Encoding: \x0bchunked\r\nContent-Length: 5{END}",
    "coding_unknown": f"Transfer-Encoding: xchunked\r\nContent-Length: 5{END}",
    "coding_quoted": f'Transfer-Encoding: "chunked"\r\nContent-Length: 5{END}',
    "coding_folded": f"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5{END}",
    "coding_twice": f"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity{END}",
    "coding_not_last": f"Transfer-Encoding: chunked, identity{END}",
    "coding_behind_bare_line_feed": f"X: x\nTransfer-Encoding: chunked\r\nContent-Length: 5{END}",
    "coding_behind_bare_return": f"X: x\rTransfer-Encoding: chunked\r\nContent-Length: 5{END}",
    "coding_with_nul": f"Transfer-Encoding\0: chunked\r\nContent-Length: 5{END}",
    "coding_with_leading_space": f" Transfer-Encoding: chunked\r\nContent-Length: 5{END}",
    "head_that_ends_in_line_feeds": f"Content-Length: 0\n\n{SECOND}",
    "chunks_that_end_in_line_feeds": f"Transfer-Encoding: chunked\r\n\r\n2\n{{}}\n0\n\n{SECOND}",
    "chunk_longer_than_it_says": f"Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}xx0\r\n\r\n{SECOND}",
    "chunk_length_in_hex": f"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{{}}\r\n0\r\n\r\n{SECOND}",
}


@pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)
def test_fault_56_no_second_request_is_smuggled(framing: str, service: Service) -> None:
    """A request that two readers may cut in two ways is 400 as a whole: nothing of it is stored or served."""
    begun = service.start(NEVER_ACTS)
    heard = spoken_to(service, f"POST {service.returl(begun['refid'])} HTTP/1.1\r\nHost: x\r\n{framing}".encode())
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert heard.count(b"HTTP/1.1 ") == 1
    assert bodies(service, begun["refid"]) == []


def test_fault_56_a_request_in_anothers_packet_is_nobodys(service: Service) -> None:
    """A request that follows another in one packet is a request of its own: it inherits neither key nor body."""
    first = f"GET /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n\r\n"
    heard = spoken_to(service, f"{first}{SECOND}".encode())
    assert re.findall(rb"HTTP/1\.1 (\d+)", heard) == [b"200", b"401"]


def spoken_to(service: Service, request: bytes) -> bytes:
    """Send bytes, and return all that is answered until the connection ends."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    heard = b""
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(request)
        while part := connection.recv(65_536):
            heard += part
    return heard


HOSTILE = [
    "a\r\nforged",
    "a\n{}",
    "\x1b[2J\x1b[31mforged",
    "\u009b31mforged",
    "a\u0085b\u2028c",
    "\0\x08\x7f",
    "\u202eforged",
]
"""Line ends of every kind, and what drives a terminal or turns a line round."""


def hostile_calls(service: Service) -> None:
    """Put hostile text wherever this service logs what others say."""
    begun = service.start(NEVER_ACTS)
    refid = begun["refid"]
    for number, text in enumerate(HOSTILE):
        said = {"refid": refid, "tid": begun["tid"], "statusid": f"{text}{number}", f"{text}{number}": text}
        in_a_header = text.translate({ord(char): None for char in "\r\n\0\x08\x7f\x1b"}).encode("latin-1", "ignore")
        headers = [(name, in_a_header + b"!") for name in ("X-Forwarded-For", "Content-Type", "X-Request-ID")]
        post(service, service.returl(refid), said, ("X-Forwarded-For", KPAY), ("Content-Type", in_a_header))
        post(service, service.returl(refid), said, *headers)
        in_a_path = quote(text, safe="")
        for path in (service.returl(refid, mac=in_a_path), f"/kpay/returl/{in_a_path}/x", f"/v1/payments/{in_a_path}"):
            post(service, path, said, *headers)
        service.http.post("/v1/payments", json=payment(NEVER_ACTS, refid=text, details=text))
    for head in (b"GET / HTTP/1.1\r\nA: \x1b[31m\r\n\r\n", b"\x1b[2J / HTTP/1.1\r\n\r\n"):
        spoken_to(service, head)


def test_fault_59_a_json_log_has_one_object_a_line(fenced: Service) -> None:
    """Whatever callers and K-Pay write, a JSON log is one whole object to a line and drives no terminal."""
    hostile_calls(fenced)
    lines = fenced.process.words.split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert {"timestamp", "level", "event"} <= set(json.loads(line))
        assert line.isprintable()


def test_fault_59_a_console_log_has_no_forged_line(proxied: Service) -> None:
    """On a console too every line is begun by the service itself, and no character that drives a terminal is left."""
    hostile_calls(proxied)
    words = proxied.process.words
    assert "K-Pay said something never seen" in words
    assert "forged" in words
    for line in words.splitlines():
        assert line.isprintable(), line
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[", line), line


def test_fault_59_an_operator_sees_what_was_written(service: Service) -> None:
    """What a payer or K-Pay wrote is shown to an operator letter by letter: no mark-up in it acts or vanishes."""
    texts = ["[link=https://evil.example]here[/link]", "[bold]x[/bold]", "\\[x] [/b] paid"]
    begun = service.start(NEVER_ACTS, details=texts[0], cname=texts[1], orderid=texts[2])
    done = run_command(service.env, "payments", "show", begun["refid"])
    assert done.returncode == 0, done.stderr[-500:]
    assert [text for text in texts if text not in done.stdout] == []
