"""Bodies that are no request: broken, too large, too slow, or lost on the way."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support import Json, Service, at_once, payment, query, spoken

JSON = {"Content-Type": "application/json"}
NO_BODY = {
    "empty": b"",
    "word": b"hello",
    "cut_short": b'{"amount": 4200,',
    "array": b"[]",
    "null": b"null",
    "number": b"5",
    "text": b'"x"',
    "deep": b"[" * 60_000,
    "deep_member": b'{"metadata": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "digits": b'{"amount": ' + b"9" * 5_000 + b"}",
    "not_utf8": b'{"details": "\xff"}',
    "nul": b"\0",
    "html": b"<html>",
}


@pytest.fixture(scope="module")
def garbled(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of an API client that never sends a request that can be read."""
    with service.client(service.new_key("garbled", "payments:write")) as http:
        yield http


def refused(answer: httpx2.Response, *statuses: int) -> Json:
    """Return the problem of an answer that must be one, well formed."""
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: Json = answer.json()
    assert problem["status"] == answer.status_code
    assert all(isinstance(problem[name], str) and problem[name] for name in ("type", "title", "detail", "code"))
    return problem


@pytest.mark.parametrize("kind", NO_BODY)
def test_a_body_that_is_no_request(kind: str, garbled: httpx2.Client) -> None:
    """What is no JSON object is refused, however it is broken."""
    refused(garbled.post("/v1/payments", content=NO_BODY[kind], headers=JSON), 400, 422)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type(content_type: str, garbled: httpx2.Client) -> None:
    """A body that does not say it is JSON is refused, and the answer tells that this is the reason."""
    headers = {"Content-Type": content_type} if content_type else {}
    problem = refused(garbled.post("/v1/payments", content=json.dumps(payment()).encode(), headers=headers), 415, 422)
    assert "content-type" in problem["detail"].lower()


def test_every_refusal_is_documented(service: Service, garbled: httpx2.Client) -> None:
    """The OpenAPI document tells of every status that a start may be answered with."""
    documented = service.http.get("/openapi.json").json()["paths"]["/v1/payments"]["post"]["responses"]
    seen = {garbled.post("/v1/payments", content=body, headers=JSON).status_code for body in NO_BODY.values()}
    assert {str(status) for status in seen | {200, 201, 408, 413}} <= set(documented)


@pytest.mark.parametrize("chunked", [False, True], ids=["content_length", "chunked"])
def test_fault_14_a_request_over_64_kib(chunked: bool, garbled: httpx2.Client) -> None:  # noqa: FBT001 - parametrized
    """A request of 64 KiB is read, a byte more is 413, also where the size is not told beforehand."""
    body = json.dumps(payment(amount=0)).encode().ljust(64 * 1024)

    def sent(body: bytes) -> httpx2.Response:
        parts = (body[at : at + 8192] for at in range(0, len(body), 8192))
        return garbled.post("/v1/payments", content=parts if chunked else body, headers=JSON)

    assert refused(sent(body), 422)["errors"][0]["field"] == "amount"
    assert refused(sent(body + b" "), 413)["code"] == "too_large"


def test_a_client_that_offers_http_2_is_understood(service: Service, garbled: httpx2.Client) -> None:
    """A body is not lost where its sender offers HTTP/2 by `Upgrade`, as Java's own HttpClient does over http."""
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    headers = {"authorization": garbled.headers["authorization"], "content_type": "application/json"}
    request = spoken("POST", "/v1/payments", json.dumps(payment(amount=0)).encode(), **headers, **offer)
    (said,) = at_once(service.url, [request])
    assert [error["field"] for error in said.json()["errors"]] == ["amount"]


def test_nothing_of_all_that_was_recorded(service: Service, garbled: httpx2.Client) -> None:
    """After all requests of this module the client has no payment."""
    assert not query(service.database_url, "SELECT refid FROM payments WHERE client = 'garbled'")
