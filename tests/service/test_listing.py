"""Listing payments: newest first, narrowed by filters, page by page, and never by junk."""

import base64
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.support import Json, Service, hush, payment

NEVER_ACTS = "250780000005"
KINDS: dict[str, Json] = {
    "paid": payment("250780000007"),
    "refused": payment("250780000048"),
    "open": payment(NEVER_ACTS),
    "card": payment(NEVER_ACTS, pmethod="cc"),
    "card_refused": payment("250780000048", pmethod="cc"),
    "unknown": payment("250780000032"),
}
FILTERS: dict[str, tuple[dict[str, str], Callable[[Json], bool]]] = {
    "none": ({}, lambda each: True),
    "succeeded": ({"status": "succeeded"}, lambda each: each["status"] == "succeeded"),
    "failed": ({"status": "failed"}, lambda each: each["status"] == "failed"),
    "pending": ({"status": "pending"}, lambda each: each["status"] == "pending"),
    "expired": ({"status": "expired"}, lambda each: False),
    "cc": ({"pmethod": "cc"}, lambda each: each["pmethod"] == "cc"),
    "smartcash": ({"pmethod": "smartcash"}, lambda each: False),
    "msisdn": ({"msisdn": NEVER_ACTS}, lambda each: each["msisdn"] == NEVER_ACTS),
    "local_msisdn": ({"msisdn": "0780000005"}, lambda each: each["msisdn"] == NEVER_ACTS),
    "plus_msisdn": ({"msisdn": "+250 780 000 005"}, lambda each: each["msisdn"] == NEVER_ACTS),
    "no_tid": ({"tid": "A0"}, lambda each: False),
    "reviewed": ({"needs_review": "true"}, lambda each: each["needs_review"]),
    "fine": ({"needs_review": "false"}, lambda each: not each["needs_review"]),
    "cards_failed": (
        {"pmethod": "cc", "status": "failed", "msisdn": "0780000048", "needs_review": "false"},
        lambda each: (each["pmethod"], each["status"]) == ("cc", "failed"),
    ),
}
NO_FILTER = {
    "limit": ["0", "101", "-1", "1.5", "1e1", "abc", "", "9" * 30, "%00"],
    "status": ["paid", "", "SUCCEEDED", "%00", "pending,failed"],
    "pmethod": ["mpesa", "", "%00"],
    "msisdn": ["abc", "%00", "123", "%ff", "2507%F0%9F%8E%89", "9" * 21, "0780000005'--"],
    "tid": ["%00", "", "a" * 65, "%ff", "a%20b", "%ED%A0%80"],
    "needs_review": ["maybe", "", "2", "%00"],
    "created_after": [
        "yesterday",
        "",
        "%00",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-13-01T00:00:00Z",
        "nan",
        "inf",
    ],
    "created_before": [
        "2026-01-01T00:00:00",
        "0001-01-01T00:00:00%2B14:00",
        "9999-12-31T23:59:59-14:00",
        "99999-01-01T00:00:00Z",
        "1e400",
    ],
}


def cursor(words: str) -> str:
    """Return a cursor as the service would write one."""
    return base64.urlsafe_b64encode(words.encode()).decode().rstrip("=")


NO_CURSOR = {
    "empty": "",
    "junk": "junk",
    "nul": "%00",
    "not_ascii": "%C3%A9",
    "not_base64": "!!!!",
    "word": cursor("word"),
    "no_time": cursor("word word"),
    "naive": cursor("2026-01-01T00:00:00 a"),
    "nul_in_refid": cursor("2026-01-01T00:00:00+00:00 a\0"),
    "words": cursor("2026-01-01T00:00:00+00:00 a b"),
    "too_long": "a" * 201,
    "after_the_end_of_time": cursor("9999-12-31T23:59:59-23:00 a"),
    "before_the_beginning": cursor("0001-01-01T00:00:00+23:00 a"),
}


@pytest.fixture(scope="module", autouse=True)
def _hushed(service: Service) -> Iterator[None]:
    """Leave no payments behind that are checked for ever."""
    yield
    hush(service)


@pytest.fixture(scope="module")
def shop(service: Service) -> Iterator[httpx2.Client]:
    """Yield the HTTP client of an API client with one payment of each kind, the last of them after a short while."""
    with service.client(service.new_key("list-shop")) as http:
        made = {kind: http.post("/v1/payments", json=asked).json()["refid"] for kind, asked in KINDS.items()}
        http.get(f"/v1/payments/{made['unknown']}", params={"wait": 15})
        lie = {"tid": "A0", "refid": made["open"], "statusid": "02"}
        assert http.post(service.returl(made["open"]), json=lie).status_code == 400
        yield http


def listed(http: httpx2.Client, **filters: Any) -> list[Json]:  # noqa: ANN401 - what httpx takes
    """Return the payments of one page."""
    answer = http.get("/v1/payments", params=filters)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"items", "next_cursor"}
    items: list[Json] = answer.json()["items"]
    return items


@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter_gives_just_what_it_says(kind: str, shop: httpx2.Client) -> None:
    """Each filter, and several together, give the payments that they say, newest first, and no other client's."""
    filters, fits = FILTERS[kind]
    everything = listed(shop)
    assert len(everything) == len(KINDS)
    assert everything == sorted(everything, key=lambda each: (each["created_at"], each["refid"]), reverse=True)
    wanted = [each["refid"] for each in everything if fits(each)]
    assert [each["refid"] for each in listed(shop, **filters)] == wanted
    assert wanted or kind in {"expired", "smartcash", "no_tid"}


def test_a_payment_is_found_by_its_tid(shop: httpx2.Client) -> None:
    """The filter by K-Pay's reference gives the one payment that has it."""
    for each in listed(shop, pmethod="momo", status="succeeded"):
        assert [found["refid"] for found in listed(shop, tid=each["tid"])] == [each["refid"]]


def test_times_narrow_from_both_sides(shop: httpx2.Client) -> None:
    """`created_after` and `created_before` leave out what was made at that very moment; any zone may be written."""
    newest, *_, oldest = listed(shop)
    between = listed(shop, created_after=oldest["created_at"], created_before=newest["created_at"])
    assert [each["refid"] for each in between] == [each["refid"] for each in listed(shop)[1:-1]]
    kigali = datetime.fromisoformat(oldest["created_at"]) - timedelta(microseconds=1)
    written = (kigali + timedelta(hours=2)).replace(tzinfo=None).isoformat() + "+02:00"
    assert len(listed(shop, created_after=written)) == len(KINDS)
    assert listed(shop, created_after=newest["created_at"]) == []
    assert listed(shop, created_before=oldest["created_at"]) == []
    assert listed(shop, created_after="2999-01-01T00:00:00Z") == []


def test_an_item_is_the_payment(shop: httpx2.Client) -> None:
    """What a list shows of a payment is what a read shows."""
    for each in listed(shop, needs_review=False, status="failed"):
        assert shop.get(f"/v1/payments/{each['refid']}").json() == each


@pytest.mark.parametrize("limit", [1, 5, 6, 7, 100])
def test_pages_end(limit: int, shop: httpx2.Client) -> None:
    """Whatever the limit, the pages together are the list, each is full but the last, and the last has no cursor."""
    pages, cursor = [], None
    while True:
        page = shop.get("/v1/payments", params={"limit": limit} | ({"cursor": cursor} if cursor else {})).json()
        pages.append([each["refid"] for each in page["items"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert [refid for page in pages for refid in page] == [each["refid"] for each in listed(shop)]
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert pages[-1]


def test_a_walk_sees_each_payment_once_while_others_arrive(service: Service) -> None:
    """A walk over 25 payments by pages of 4 sees each once, newest first, however many are made meanwhile."""
    with service.client(service.new_key("walker")) as http:
        made = [http.post("/v1/payments", json=payment(NEVER_ACTS)).json()["refid"] for _ in range(25)]
        seen: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = http.get("/v1/payments", params={"limit": 4} | ({"cursor": cursor} if cursor else {})).json()
            seen += [each["refid"] for each in page["items"]]
            cursor = page["next_cursor"]
            http.post("/v1/payments", json=payment(NEVER_ACTS))
    assert seen == made[::-1]


def test_a_cursor_keeps_its_filter_beside_it(shop: httpx2.Client) -> None:
    """A cursor with the same filter walks on within the filter."""
    first = shop.get("/v1/payments", params={"msisdn": NEVER_ACTS, "limit": 1}).json()
    rest = listed(shop, msisdn=NEVER_ACTS, cursor=first["next_cursor"])
    assert [each["refid"] for each in first["items"] + rest] == [
        each["refid"] for each in listed(shop, msisdn=NEVER_ACTS)
    ]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO_FILTER.items() for value in values])
def test_a_filter_that_is_none(name: str, value: str, shop: httpx2.Client) -> None:
    """A filter that can match nothing is 422 and named, and its value is not repeated."""
    answer = shop.get(f"/v1/payments?{name}={value}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [error["field"] for error in answer.json()["errors"]] == [name]


@pytest.mark.parametrize("kind", NO_CURSOR)
def test_a_cursor_that_is_none(kind: str, shop: httpx2.Client) -> None:
    """A cursor that no page handed out is 422 and named, never an error of the service."""
    answer = shop.get(f"/v1/payments?cursor={NO_CURSOR[kind]}")
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == ["cursor"]


@pytest.mark.parametrize("query", ["%00=%00", "%ff", "&&&=&", "status[]=failed", "a" * 50_000, quote("\N{KEY}") + "=1"])
def test_junk_beside_the_filters_is_no_error(query: str, shop: httpx2.Client) -> None:
    """A query that nobody wrote on purpose is answered, and not by a 5xx."""
    assert shop.get(f"/v1/payments?{query}").status_code in {200, 400, 414, 422}
