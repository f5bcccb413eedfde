"""Who may call what: every route has its key, its scope and its owner; keys end when they are told to."""

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import pytest

from tests.support import Json, Service, Simulator, eventually, hush, new_refid, payment, query, run_command

NEVER_ACTS = "250780000005"
OPEN = ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"]
GARBAGE = {
    "none": None,
    "empty": b"",
    "no_scheme": b"KEY",
    "no_key": b"Bearer",
    "basic": b"Basic a3BheTprcGF5",
    "unknown": b"Bearer kpk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "cut": b"Bearer KEY-",
    "longer": b"Bearer KEYA",
    "two": b"Bearer KEY KEY",
    "not_ascii": b"Bearer \xff\xfe\xc3\xa9",
    "nul_like": b"Bearer %00",
    "sql": b"Bearer ' OR 1=1 --",
    "huge": b"Bearer " + b"k" * 20_000,
}


class Route(NamedTuple):
    """One operation of the API."""

    method: str
    path: str


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def routes(service: Service) -> list[Route]:
    """Return every operation under /v1 that the service says it has."""
    paths = httpx2.get(f"{service.url}/openapi.json", trust_env=False).json()["paths"]
    found = [Route(method.upper(), path) for path, methods in paths.items() for method in methods]
    found = [route for route in found if route.path.startswith("/v1/")]
    assert len(found) >= 5
    return found


@pytest.fixture(scope="module")
def ours(service: Service) -> Json:
    """Start a payment of the shop's own."""
    return service.start(NEVER_ACTS)


@pytest.fixture(scope="module")
def stranger(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of another API client, which may do everything to what is its own."""
    with service.client(service.new_key("stranger")) as http:
        yield http


def call(http: httpx2.Client, route: Route, refid: str, **more: object) -> httpx2.Response:
    """Call an operation about `refid`, with a body that would be good where one is wanted."""
    path = re.sub(r"\{[^}]+\}", refid, route.path)
    body = payment(NEVER_ACTS, refid=new_refid()) if route.method == "POST" else None
    return http.request(route.method, path, json=body, **more)  # type: ignore[arg-type] # httpx's own options


def problem(answer: httpx2.Response) -> Json:
    """Return the problem that an answer is."""
    assert answer.headers["content-type"] == "application/problem+json"
    body: Json = answer.json()
    assert body["status"] == answer.status_code
    return body


@pytest.mark.parametrize("kind", GARBAGE)
def test_every_route_needs_a_key(kind: str, routes: list[Route], ours: Json, service: Service) -> None:
    """Without a key, or with one that nobody has, every operation is 401 and says how to come in."""
    given = (GARBAGE[kind] or b"").replace(b"KEY-", service.key[:-1].encode()).replace(b"KEY", service.key.encode())
    headers = [] if GARBAGE[kind] is None else [(b"Authorization", given)]
    # Each from an address of its own: one that has sent a hundred wrong keys within a minute is answered 429.
    line = httpx2.HTTPTransport(local_address=f"127.0.1.{list(GARBAGE).index(kind) + 1}")
    with httpx2.Client(base_url=service.url, transport=line, timeout=90) as http:
        for route in routes:
            answer = call(http, route, ours["refid"], headers=headers)
            assert answer.status_code == 401, route
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert problem(answer)["code"] == "unauthorized"
            assert service.key not in answer.text


@pytest.mark.parametrize("body", [b"", b"junk", b"\xff", b"[" * 60_000], ids=["empty", "junk", "not_utf8", "deep"])
def test_a_body_of_nobody_is_not_discussed(body: bytes, service: Service) -> None:
    """Who has no key is told that, and not what is wrong with a body."""
    with service.client(None) as http:
        answer = http.post("/v1/payments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_every_route_needs_its_scope(routes: list[Route], ours: Json, service: Service) -> None:
    """A key that lacks the scope is 403 at every operation, and the answer says which scope it is."""
    for route in routes:
        about_events = route.path.startswith(("/v1/events", "/v1/deliveries"))
        lacking = "tokens:write" if about_events else "events:read"
        with service.client(service.new_key(f"only-{lacking.replace(':', '-')}", lacking)) as http:
            answer = call(http, route, ours["refid"])
        assert answer.status_code == 403, route
        assert re.search(r"[a-z]+:[a-z]+", problem(answer)["detail"])


def test_a_reader_may_not_start_and_a_starter_may_not_read(service: Service, simulator: Simulator) -> None:
    """The two scopes of payments are apart: neither key does the other's work, and nothing is recorded."""
    asked = payment(NEVER_ACTS, refid=new_refid())
    with service.client(service.new_key("reader", "payments:read")) as http:
        assert http.post("/v1/payments", json=asked).status_code == 403
        assert http.get("/v1/payments").json() == {"items": [], "next_cursor": None}
    assert not query(service.database_url, "SELECT FROM payments WHERE refid = $1", asked["refid"])
    assert simulator.requests(asked["refid"]) == 0
    with service.client(service.new_key("writer", "payments:write")) as http:
        assert http.post("/v1/payments", json=asked).status_code == 201
        assert http.get(f"/v1/payments/{asked['refid']}").status_code == 403
        assert http.get("/v1/payments").status_code == 403


def test_fault_58_another_clients_payment_is_not_there(
    routes: list[Route], ours: Json, service: Service, stranger: httpx2.Client
) -> None:
    """At every route another client's payment is 404, word for word as one that does not exist."""
    about_one = [route for route in routes if "{refid}" in route.path]
    assert len(about_one) >= 3
    for route in about_one:
        answer, nobodys = call(stranger, route, ours["refid"]), call(stranger, route, new_refid())
        assert (answer.status_code, answer.json()) == (404, nobodys.json()), route
        assert problem(answer)["code"] == "not_found"
        assert call(service.http, route, ours["refid"]).status_code == 200


def test_fault_58_no_list_shows_another_clients_payments(ours: Json, stranger: httpx2.Client) -> None:
    """No filter and no cursor of one client shows a payment of another."""
    for filters in ({}, {"msisdn": NEVER_ACTS}, {"tid": ours["tid"]}, {"status": "pending"}, {"pmethod": "momo"}):
        assert ours["refid"] not in stranger.get("/v1/payments", params=filters).text


def test_fault_58_a_strangers_cursor_shows_only_its_own(service: Service, stranger: httpx2.Client) -> None:
    """A cursor handed to one client and used by another walks through the other's payments."""
    service.start(NEVER_ACTS)
    cursor = service.http.get("/v1/payments", params={"limit": 1}).json()["next_cursor"]
    answer = stranger.get("/v1/payments", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["items"]) == (200, [])


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}"])
def test_the_scheme_may_be_written_in_any_case(spelling: str, service: Service) -> None:
    """RFC 9110: a scheme's name has no case, and more than one space may follow."""
    with service.client(None) as http:
        answer = http.get("/v1/payments", headers={"Authorization": spelling.format(service.key)})
    assert answer.status_code == 200


def test_a_revoked_key_dies_within_10_seconds(service: Service) -> None:
    """A key in constant use is 401 within 10 s of its revocation, and never comes back."""
    with service.client(service.new_key("leaving")) as http:
        assert http.get("/v1/payments").status_code == 200
        assert run_command(service.env, "clients", "revoke", "leaving").returncode == 0
        revoked = time.monotonic()
        eventually(lambda: http.get("/v1/payments").status_code == 401, seconds=12)
        assert time.monotonic() - revoked < 10
        assert {http.get("/v1/payments").status_code for _ in range(20)} == {401}


def test_a_rotated_key_has_two_lives(service: Service) -> None:
    """After a rotation the new key and the one before are both valid, and mean the same client."""
    old = service.new_key("rotating")
    with service.client(old) as http:
        refid = http.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"]
        done = run_command(service.env, "clients", "rotate", "rotating", "--json")
        assert done.returncode == 0, done.stderr
        with service.client(re.search(r'"key": "([^"]+)"', done.stdout)[1]) as renewed:  # type: ignore[index]
            for each in (http, renewed):
                assert each.get(f"/v1/payments/{refid}").status_code == 200


def test_keys_are_not_in_the_database(service: Service) -> None:
    """What the database keeps of a key is no key."""
    rows = query(service.database_url, "SELECT clients::text AS words FROM clients")
    assert len(rows) > 1
    assert not [row for row in rows if "kpk_" in row["words"] or service.key in row["words"]]


@pytest.mark.parametrize("path", OPEN)
def test_operation_is_open(path: str, service: Service) -> None:
    """Liveness, readiness, metrics and the documentation need no key, and show none."""
    answer = httpx2.get(f"{service.url}{path}", trust_env=False)
    assert answer.status_code == 200
    assert service.key not in answer.text
    assert "kpk_" not in answer.text
