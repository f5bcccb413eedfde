"""Starting a payment: what a good request may say, what is filled in, and what the answer looks like."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from tests.conftest import QUICK
from tests.support import Json, Service, Simulator, new_refid, payment, run_service

ANSWER = {
    *("refid", "amount", "currency", "pmethod", "bankid", "msisdn", "email", "details", "cname", "cnumber"),
    *("redirecturl", "logourl", "metadata", "orderid", "status", "tid", "checkout_url", "momtransactionid"),
    *("payaccount", "statusid", "statusdesc", "failure", "needs_review", "review_reasons"),
    *("created_at", "updated_at", "final_at"),
}
"""The members of a payment as CONTRACT section 3 lists them."""

BANKS = {
    *("010", "040", "070", "100", "115", "130", "145", "160", "192", "400", "750", "800", "900", "950", "951"),
    *("63510", "63514", "000", "63501", "63502"),
}
"""The institutions of K-Pay's guide."""

UGANDAN = "256772123456"


@pytest.fixture(scope="module")
def usd(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that takes USD and says that it is reached by https, as one in production does."""
    more = QUICK | {"ALLOW_USD": "true", "PUBLIC_URL": "https://pay.example.rw"}
    with run_service(tmp_path_factory.mktemp("usd"), new_database(), simulator, more) as service:
        yield service


def refused(service: Service, *fields: str, **changes: object) -> Json:
    """Ask for a payment that must be 422 for these fields and no other; return the problem."""
    answer = service.http.post("/v1/payments", json=payment() | changes)
    assert answer.status_code == 422, answer.text
    problem: Json = answer.json()
    assert sorted(error["field"] for error in problem["errors"]) == sorted(fields)
    return problem


def test_the_answer_has_every_member_of_the_contract(service: Service) -> None:
    """A new payment has all members, says where it is to be read, and its times are RFC 3339 in UTC."""
    asked = payment(refid=new_refid())
    answer = service.http.post("/v1/payments", json=asked)
    body = answer.json()
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"/v1/payments/{asked['refid']}"
    assert set(body) >= ANSWER
    assert body["status"] in {"created", "pending"}
    assert (body["failure"], body["needs_review"], body["review_reasons"], body["final_at"]) == (None, False, [], None)
    for name in ("created_at", "updated_at"):
        assert body[name].endswith("Z")
        assert abs(datetime.fromisoformat(body[name]) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("left_out", [{}, {"refid": None}], ids=["absent", "null"])
def test_a_refid_is_made_where_none_is_given(left_out: Json, service: Service) -> None:
    """A refid made here is new each time and one that a caller might have given."""
    made = [service.http.post("/v1/payments", json=payment() | left_out).json()["refid"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{20,40}", refid) for refid in made)


@pytest.mark.parametrize("rest", ["", "_-", "-_AZaz09", "0" * 30], ids=["letters", "marks", "alphabet", "forty_long"])
def test_the_callers_refid_is_taken_as_it_is(rest: str, service: Service, simulator: Simulator) -> None:
    """The whole alphabet and the full length are taken, case and all, and K-Pay is sent just that."""
    refid = (new_refid()[:10] + rest)[:40]
    assert service.start(refid=refid)["refid"] == refid
    assert simulator.requests(refid) == 1
    other = refid.swapcase()
    assert other == refid or service.http.get(f"/v1/payments/{other}").status_code == 404


@pytest.mark.parametrize(
    ("number", "pmethod", "bankid"),
    [
        ("250780000000", "momo", "63510"),
        ("250790000000", "momo", "63510"),
        ("250720000000", "momo", "63514"),
        ("250730000000", "momo", "63514"),
        ("250780000000", "spenn", "63502"),
        ("250780000000", "cc", "000"),
        (UGANDAN, "cc", "000"),
    ],
)
def test_a_method_implies_its_institution(number: str, pmethod: str, bankid: str, service: Service) -> None:
    """Left out, `bankid` follows from the method and, for momo, from the number's prefix; `null` is left out too."""
    assert service.start(number, pmethod=pmethod)["bankid"] == bankid
    asked = payment(number, pmethod=pmethod) | {"bankid": None}
    assert service.http.post("/v1/payments", json=asked).json()["bankid"] == bankid


@pytest.mark.parametrize(
    ("number", "pmethod"), [("250780000000", "bank"), ("250780000000", "smartcash"), (UGANDAN, "momo")]
)
def test_what_implies_no_institution_needs_one(number: str, pmethod: str, service: Service) -> None:
    """Bank and smartcash need a `bankid`, and so does momo from a number of no Rwandan operator."""
    refused(service, "bankid", msisdn=number, pmethod=pmethod)
    assert service.start(number, pmethod=pmethod, bankid="040")["bankid"] == "040"


@pytest.mark.parametrize("bankid", sorted(BANKS))
def test_every_institution_of_the_guide_is_taken(bankid: str, service: Service) -> None:
    """A `bankid` of the guide's table is kept as given, leading zeros and all."""
    assert service.start(pmethod="bank", bankid=bankid)["bankid"] == bankid


@pytest.mark.parametrize("bankid", ["", "40", "0040", "040 ", "63511", "MTN", "011"])
def test_no_other_institution_is_taken(bankid: str, service: Service) -> None:
    """A `bankid` that the guide does not have is refused, and the answer does not repeat it."""
    problem = refused(service, "bankid", pmethod="bank", bankid=bankid)
    assert not bankid or f"'{bankid}'" not in str(problem)


@pytest.mark.parametrize(
    "written", ["0788312934", "+250788312934", "250788312934", " 250 788 312 934 ", "+250-788-312-934"]
)
def test_a_number_is_stored_with_its_country_code(written: str, service: Service) -> None:
    """However a number is written, it is `2507...`, and so is the `cnumber` that was left out."""
    body = service.start(written)
    assert (body["msisdn"], body["cnumber"]) == ("250788312934", "250788312934")


def test_the_currency_is_rwf_unless_said(service: Service) -> None:
    """`currency` may be left out; RWF may be said; USD is refused where the deployment has not allowed it."""
    assert service.start()["currency"] == "RWF"
    assert service.start(currency="RWF")["currency"] == "RWF"
    refused(service, "currency", currency="USD")


def test_usd_is_taken_where_it_is_allowed(usd: Service) -> None:
    """With KPAYD_ALLOW_USD, USD is taken, RWF stays the default, and no third currency comes in."""
    assert usd.start(currency="USD")["currency"] == "USD"
    assert usd.start()["currency"] == "RWF"
    refused(usd, "currency", currency="EUR")
    refused(usd, "currency", currency="usd")


@pytest.mark.parametrize("name", ["redirecturl", "logourl"])
@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "HTTP://127.0.0.1/x", "http://localhost/x", "hTTp://[::1]/x"])
def test_production_takes_no_http_url(name: str, url: str, usd: Service) -> None:
    """Where PUBLIC_URL is https, the caller's URLs are https only, however the scheme is written."""
    refused(usd, name, **{name: url})


@pytest.mark.parametrize("url", ["https://shop.example.rw", "HTTPS://shop.example.rw/a?b=c&d=%20#e", "https://x:8443/"])
def test_an_https_url_is_kept_as_it_is(url: str, service: Service) -> None:
    """`redirecturl` and `logourl` come back as they were given."""
    body = service.start(redirecturl=url, logourl=url)
    assert (body["redirecturl"], body["logourl"]) == (url, url)


@pytest.mark.parametrize(
    "text",
    ["x" * 200, "\N{PARTY POPPER}" * 200, "Crème brûlée, 4 200 FRW", "\N{HEAVY BLACK HEART}\ufe0f 中文 العربية"],
    ids=["full_length", "emoji", "french", "scripts"],
)
def test_details_may_be_of_any_script(text: str, service: Service) -> None:
    """200 characters, not bytes, of any script and emoji come back as they were given."""
    assert service.start(details=text)["details"] == text


@pytest.mark.parametrize(
    "text",
    ["4\N{NO-BREAK SPACE}200 FRW", "4\N{NARROW NO-BREAK SPACE}200 FRW", "\N{MAN}\N{ZERO WIDTH JOINER}\N{GIRL}"],
    ids=["no_break_space", "narrow_no_break_space", "joined_emoji"],
)
@pytest.mark.parametrize("name", ["details", "cname"])
def test_what_phones_and_offices_write_is_taken(name: str, text: str, service: Service) -> None:
    """French thousands and an emoji of several code points are text, neither control characters nor line breaks."""
    assert service.start(**{name: text})[name] == text


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"k" * 40: "v" * 500},
        {f"key{number}": "value" for number in range(50)},
        {"clé \N{KEY}": "a\nb\tc", "empty": ""},
        {"__proto__": "x", "refid": "y", "cvv": "z"},
    ],
    ids=["none", "longest", "most", "unicode", "names"],
)
def test_metadata_comes_back(metadata: Json, service: Service) -> None:
    """Metadata is kept and given back as it was, by the start and by a read."""
    body = service.start(metadata=metadata)
    assert body["metadata"] == metadata
    assert service.read(body["refid"])["metadata"] == metadata


def test_optional_members_may_be_null(service: Service) -> None:
    """`null` in an optional member is the member left out."""
    absent = dict.fromkeys(("refid", "cnumber", "logourl", "bankid", "orderid"))
    body = service.http.post("/v1/payments", json=payment() | absent).json()
    assert (body["logourl"], body["orderid"], body["cnumber"]) == (None, None, body["msisdn"])


@pytest.mark.parametrize("pmethod", ["cc", "momo"])
def test_a_payer_gets_a_page_to_go_to(pmethod: str, service: Service, simulator: Simulator) -> None:
    """A payment has a checkout page on K-Pay's own host; by the guide's example a mobile one has one, too."""
    body = service.start(pmethod=pmethod)
    assert body["checkout_url"] == f"{simulator.url}/checkout/{body['tid']}"


def test_a_refused_payer_has_no_page_to_go_to(service: Service) -> None:
    """A payment that K-Pay refused has no checkout page."""
    assert service.start("250780000048", pmethod="cc")["checkout_url"] is None


@pytest.mark.parametrize(("number", "retcode"), [("048", "609"), ("051", "603")])
def test_a_refusal_is_a_payment_too(number: str, retcode: str, service: Service) -> None:
    """What K-Pay refused is 201 with `failed` and K-Pay's own code and words."""
    body = service.start(f"250780000{number}")
    assert body["status"] == "failed"
    assert set(body["failure"]) == {"code", "detail", "retcode", "retryable"}
    assert body["failure"]["retcode"] == retcode
    assert body["failure"]["detail"]
    assert body["final_at"].endswith("Z")


def test_an_unknown_outcome_is_a_payment_too(service: Service) -> None:
    """Where K-Pay broke off without an answer, the start is 201 with `created`: nothing is guessed."""
    body = service.start("250780000032")
    assert (body["status"], body["failure"]) == ("created", None)


def test_json_is_read_by_any_json_content_type(service: Service) -> None:
    """A charset parameter and a byte-order mark change nothing."""
    body = b"\xef\xbb\xbf" + httpx2.Request("POST", "http://x", json=payment()).content
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert service.http.post("/v1/payments", content=body, headers=headers).status_code == 201
