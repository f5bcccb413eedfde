"""The payer's way back: who holds the link is sent on or waits, K-Pay is asked, and nothing a browser says counts."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import quote, urljoin

import httpx2
import pytest

from app.macs import RETURL, Macs
from tests.support import (
    SECRET_KEY,
    Json,
    Service,
    Simulator,
    eventually,
    metric,
    new_refid,
    query,
    run_command,
    run_service,
)

NEVER_ACTS = "250780000005"
CALM = {"CHECK_SCHEDULE": "60", "POSTBACK_RECHECKS": "0.3,0.6,1"}
NAME = "Kigali <b>Books</b> & Sons"
ROW = "SELECT p::text FROM payments p WHERE refid = $1"

Pair = tuple[Service, Service]


@pytest.fixture(scope="module")
def pair(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Run two services over one database, the second with a merchant's name; by themselves they ask K-Pay late."""
    folder, url = tmp_path_factory.mktemp("pair"), new_database()
    named = CALM | {"MERCHANT_NAME": NAME}
    with run_service(folder, url, simulator, CALM) as one, run_service(folder, url, simulator, named) as other:
        yield one, other


def path(refid: str, mac: str | None = None) -> str:
    """Return the path of the payer's way back."""
    return f"/kpay/return/{refid}/{mac or Macs([SECRET_KEY]).make('return', refid)}"


def arrive(service: Service, refid: str, query: str = "", *, method: str = "GET", **more: str) -> httpx2.Response:
    """Come back as a payer's browser does, which follows nowhere."""
    with service.client(None) as http:
        return http.request(method, path(refid) + query, **more)  # type: ignore[arg-type] # httpx2's own


def checks(simulator: Simulator, refid: str) -> int:
    """Return how often K-Pay was asked about a payment."""
    known = simulator.ledger(refid)
    assert known is not None
    return int(known["checks"])


def state(service: Service, refid: str) -> tuple[str, list[Json]]:
    """Return all that is known of a payment: its row and its timeline."""
    return str(query(service.database_url, ROW, refid)[0]), service.events(refid)


@contextmanager
def news(service: Service, refid: str, *, method: str = "GET", seconds: float = 20) -> Iterator[HTTPResponse]:
    """Open the stream that a waiting page listens to; `seconds` is how long it may be silent."""
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=seconds)
    try:
        connection.request(method, f"{path(refid)}/news")
        yield connection.getresponse()
    finally:
        connection.close()


def test_without_the_right_mac_there_is_nothing(pair: Pair) -> None:
    """A wrong mac, the listener's, another payment's and an unknown refid are one page that tells nothing, 404."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    other, macs = pair[0].start(NEVER_ACTS)["refid"], Macs([SECRET_KEY])
    wrong = ["x", "%00", "é", macs.make(RETURL, refid), macs.make("return", other), macs.make("return", refid).upper()]
    wrong += [macs.make("return", refid)[:-1], macs.make("return", refid) + "A", Macs(["n" * 40]).make("return", refid)]
    paths = [*(path(refid, quote(mac, safe="%")) for mac in wrong), path(new_refid())]
    with pair[0].client(None) as http:
        answers = [http.get(each) for each in paths]
        assert {answer.status_code for answer in answers} == {404}
        streams = []
        for each in paths[:-1]:
            with http.stream("GET", f"{each}/news") as stream:  # its head first: an open one would never end
                assert stream.status_code == 404
                stream.read()
                streams.append(stream)
    assert {answer.headers["content-type"] for answer in (*answers, *streams)} == {"text/html; charset=utf-8"}
    assert len({answer.content for answer in (*answers, *streams)}) == 1
    assert not re.search(r"shop\.example|4.?200|RWF|pending", answers[0].text)
    assert pair[0].read(refid)["status"] == "pending"


def test_the_payers_link_does_not_open_the_listener(pair: Pair) -> None:
    """A postback to the listener under the payer's mac is 404, and stores nothing."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    before = state(pair[0], refid)
    forged = {"tid": pair[0].read(refid)["tid"], "refid": refid, "momtransactionid": "1", "statusid": "01"}
    said = pair[0].http.post(f"/kpay/returl/{refid}/{path(refid).rpartition('/')[2]}", json=forged)
    assert said.status_code == 404
    assert state(pair[0], refid) == before


def test_an_open_payment_shows_amount_and_merchant_and_nothing_private(pair: Pair) -> None:
    """The waiting page has its headers, says what is paid to whom, and holds nothing else that we know."""
    private = {"email": "uwase.private@example.rw", "cname": "UWASE PRIVATE", "details": "blue pills"}
    private |= {"orderid": new_refid(), "cnumber": "C-private-77"}
    started = pair[0].start(NEVER_ACTS, metadata={"note": "very private"}, **private)
    page = arrive(pair[0], started["refid"])
    assert page.status_code == 200
    wanted = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
    wanted |= {"x-frame-options": "DENY", "vary": "Accept-Language", "content-language": "en"}
    assert {name: page.headers[name] for name in wanted} == wanted
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "set-cookie" not in page.headers
    assert "<dd>4,200\u00a0RWF</dd>" in page.text
    assert "<dd>shop.example.rw</dd>" in page.text
    secrets = [*private.values(), started["tid"], "very private", NEVER_ACTS, NEVER_ACTS[3:], "ikaneza", "KANEZA"]
    text = page.text + str(page.headers)
    assert not [each for each in secrets if each in text]
    way_on = f"https://shop.example.rw/done?refid={started['refid']}&amp;status=pending"
    assert text.count(started["refid"]) == text.count(way_on) == 1


def test_the_merchants_name_is_shown_where_it_is_set(pair: Pair) -> None:
    """`KPAYD_MERCHANT_NAME` takes the place of the host, as text whatever stands in it, in each language."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    for language, words in (("en", "Merchant"), ("fr;q=0.9, en;q=0.1", "Commerçant"), ("rw", "Umucuruzi")):
        page = arrive(pair[1], refid, headers={"Accept-Language": language})  # type: ignore[arg-type]
        assert page.headers["content-language"] == language[:2]
        assert f"<dt>{words}</dt><dd>Kigali &lt;b&gt;Books&lt;/b&gt; &amp; Sons</dd>" in page.text
        assert "<b>" not in page.text


@pytest.mark.parametrize(("number", "status"), [("250780000000", "succeeded"), ("250780000001", "failed")])
def test_a_payment_that_is_over_sends_the_payer_on(number: str, status: str, pair: Pair) -> None:
    """303 to the caller's own address, its query and fragment kept, with refid and status in it."""
    url = "https://shop.example.rw/done?b=%26+2&status=mine&a#/cart?x"
    refid = pair[0].start(number, redirecturl=url)["refid"]
    assert pair[0].read(refid, wait=15)["status"] == status
    for method in ("GET", "HEAD"):
        answer = arrive(pair[0], refid, method=method)
        assert (answer.status_code, answer.content) == (303, b"")
        wanted = f"https://shop.example.rw/done?b=%26+2&a&refid={refid}&status={status}#/cart?x"
        assert answer.headers["location"] == wanted
        assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")


def test_an_expired_payment_sends_the_payer_on(pair: Pair) -> None:
    """303 with `status=expired`; where K-Pay has come to another word since, with that."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    query(pair[0].database_url, "UPDATE payments SET expires_at = now(), next_check_at = now() WHERE refid = $1", refid)
    eventually(lambda: pair[0].read(refid)["status"] == "expired")
    assert arrive(pair[0], refid).headers["location"].endswith(f"?refid={refid}&status=expired")


def test_nothing_that_a_browser_sends_changes_a_payment(pair: Pair, simulator: Simulator) -> None:
    """Query, body, cookie and method may say what they like: row and timeline stay byte for byte."""
    started = pair[0].start(NEVER_ACTS)
    refid = started["refid"]
    plain = arrive(pair[0], refid)
    before = state(pair[0], refid)
    claim = f"statusid=01&status=succeeded&tid={started['tid']}&momtransactionid=1&refid={refid}&retcode=0"
    assert arrive(pair[0], refid, f"?{claim}").content == plain.content
    for form in ("application/x-www-form-urlencoded", "application/json", "text/plain"):
        headers = {"Content-Type": form, "Cookie": claim}
        answer = arrive(pair[0], refid, method="POST", content=claim, headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.content) == (303, b"")
        assert urljoin(path(refid), answer.headers["location"]) == path(refid)
    json = f'{{"refid": "{refid}", "tid": "{started["tid"]}", "statusid": "01", "momtransactionid": "1"}}'
    assert arrive(pair[0], refid, method="POST", content=json).status_code == 303
    for method in ("PUT", "DELETE", "PATCH"):
        assert arrive(pair[0], refid, method=method).status_code == 405
    assert arrive(pair[0], refid, method="HEAD").status_code == 200
    assert state(pair[0], refid) == before
    assert checks(simulator, refid) == 1


def test_a_page_without_a_script_counts_in_its_own_address(pair: Pair) -> None:
    """Below thirty seconds the way on lies in a template, from then on it stands there; nonsense counts as nothing."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    left = {"0": 30, "29": 1, "30": 0, "31": 0, "999999": 0, "9999999": 30, "9" * 4_000: 30, "": 30, "-30": 30}
    left |= {"x": 30, "3e1": 30, "30.0": 30, "+30": 30, "%20": 30, "٢٩": 1, "٣٠": 0, "²": 30, "30&waited=x": 30}
    for waited, seconds in left.items():
        page = arrive(pair[0], refid, f"?waited={waited if waited[:1] in '%+' else quote(waited, safe='&=')}")
        assert page.status_code == 200, waited
        assert f'data-seconds="{seconds}"' in page.text, waited
        assert ('<template id="way-on">' in page.text) is (seconds > 0), waited
        assert page.text.count('class="button"') == 1
        following = re.search(r"url=\?waited=(\d+)", page.text)
        assert following is not None
        assert 5 <= int(following[1]) <= 86_405


def test_an_arrival_has_k_pay_asked(pair: Pair, simulator: Simulator) -> None:
    """What K-Pay settled a moment ago and told nobody is 303 at once; a late success after a failure, too."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    simulator.settle(refid, "02", postback=False)
    assert arrive(pair[0], refid).headers["location"].endswith("&status=failed")
    simulator.settle(refid, "01", postback=False)
    query(pair[0].database_url, "UPDATE payments SET checked_at = now() - interval '3 s' WHERE refid = $1", refid)
    assert arrive(pair[1], refid).headers["location"].endswith("&status=succeeded")
    arrive(pair[0], refid)
    assert checks(simulator, refid) == 2  # nobody asks about what is paid


def test_twenty_arrivals_at_once_are_one_question(pair: Pair, simulator: Simulator) -> None:
    """Two processes that payers come to at the same moment ask K-Pay once all told, and each has its page in time."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    simulator.behave(latency=0.5)
    try:
        with ThreadPoolExecutor(20) as pool:
            pages = list(pool.map(lambda n: arrive(pair[n % 2], refid), range(20)))
    finally:
        simulator.behave(latency=0)
    assert {page.status_code for page in pages} == {200}
    assert max(page.elapsed.total_seconds() for page in pages) < 3.5
    assert checks(simulator, refid) == 1


def test_whoever_looks_wears_no_schedule_down(pair: Pair, simulator: Simulator) -> None:
    """Visits and checks by hand that bring no news leave the check that is due as it is: it would be an hour off."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    sql = "SELECT next_check_at, check_step, wake_step FROM payments WHERE refid = $1"
    before = query(pair[0].database_url, sql, refid)
    for number in range(4):
        assert arrive(pair[number % 2], refid).status_code == 200
        assert pair[0].http.post(f"/v1/payments/{refid}/check").json()["status"] == "pending"
        query(pair[0].database_url, "UPDATE payments SET checked_at = now() - interval '1 h' WHERE refid = $1", refid)
        time.sleep(2.1)
    assert checks(simulator, refid) == 8
    assert query(pair[0].database_url, sql, refid) == before


def test_reloading_asks_k_pay_once_in_two_seconds(pair: Pair, simulator: Simulator) -> None:
    """Whoever reloads, at whichever process, is told what was asked for a moment ago; K-Pay is asked again in time."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    began, reloads = time.monotonic(), 0
    while time.monotonic() - began < 1.5:
        arrive(pair[reloads % 2], refid)
        reloads += 1
    assert reloads > 2
    assert checks(simulator, refid) <= 1 + (time.monotonic() - began) / 2
    while time.monotonic() - began < 9:
        arrive(pair[reloads % 2], refid)
        reloads += 1
        time.sleep(0.05)
    assert 3 <= checks(simulator, refid) <= 1 + (time.monotonic() - began) / 2


def test_who_comes_right_after_the_postback_is_sent_on(pair: Pair, simulator: Simulator) -> None:
    """The check that a postback asks for is waited for, though K-Pay was asked just before it."""
    for service in pair:
        refid = service.start(NEVER_ACTS)["refid"]
        assert arrive(service, refid).status_code == 200
        simulator.settle(refid, "01")
        assert arrive(service, refid).headers["location"].endswith("&status=succeeded")


def test_another_gateways_payment_is_not_asked_about(pair: Pair, simulator: Simulator) -> None:
    """Its payer sees the page, and its news wait; no gateway hears of it."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    query(pair[0].database_url, "UPDATE payments SET gateway = 'other.example.rw' WHERE refid = $1", refid)
    assert arrive(pair[0], refid).status_code == 200
    with news(pair[0], refid) as stream:
        assert begun(stream)
    assert checks(simulator, refid) == 0


def test_a_payment_without_its_personal_data_leads_nowhere(pair: Pair) -> None:
    """After `kpayd prune` the way on is not known any more: 410, and the page says so."""
    refid = pair[0].start("250780000000")["refid"]
    assert pair[0].read(refid, wait=15)["status"] == "succeeded"
    sql = """UPDATE payments SET created_at = created_at - interval '400 days',
             final_at = final_at - interval '400 days' WHERE refid = $1"""
    query(pair[0].database_url, sql, refid)
    assert run_command(pair[0].env, "prune", "--older-than", "365").returncode == 0
    page = arrive(pair[0], refid)
    assert (page.status_code, "location" in page.headers) == (410, False)
    assert "This payment is over" in page.text
    assert refid not in page.text


def begun(stream: HTTPResponse) -> bool:
    """Read when a browser is to come back, one to three seconds and not all at once, and the first beat."""
    told = re.fullmatch(rb"retry: ([123]\d{3})\n", stream.readline())
    return told is not None and (stream.readline(), stream.readline()) == (b"\n", b": \n")


def test_the_news_tell_when_there_is_somewhere_to_go(pair: Pair, simulator: Simulator) -> None:
    """One event, `final`, with nothing in it, at both processes whichever learns it; then the stream ends."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    with news(pair[0], refid) as one, news(pair[1], refid) as other:
        for stream in (one, other):
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert (stream.headers["cache-control"], begun(stream)) == ("no-store", True)
        began = time.monotonic()
        simulator.settle(refid, "01")
        for stream in (one, other):
            text = stream.read()
            assert re.sub(rb"(?m)^: \n\n|^\n", b"", text).split(b"\n")[0] == b"event: final"
            assert refid.encode() not in text
            assert b"succeeded" not in text
        assert time.monotonic() - began < 4.5  # a page looks again after five
    with news(pair[0], refid) as late:
        assert late.read().partition(b"\n\n")[2].startswith(b"event: final\n")


def test_open_pages_have_k_pay_asked_the_less_the_older_the_payment(pair: Pair, simulator: Simulator) -> None:
    """A fresh payment's two pages, one at each process, ask every five seconds together; an old one's more rarely."""
    fresh, old = (pair[0].start(NEVER_ACTS)["refid"] for _ in range(2))
    sql = "UPDATE payments SET created_at = created_at - interval '400 s' WHERE refid = $1"
    query(pair[0].database_url, sql, old)
    with news(pair[0], fresh), news(pair[1], fresh), news(pair[0], old), news(pair[1], old):
        began = time.monotonic()
        time.sleep(13)
        assert 2 <= checks(simulator, fresh) <= 2 + (time.monotonic() - began) // 5
        assert checks(simulator, old) == 1
        simulator.settle(fresh, "01", postback=False)
        assert pair[0].read(fresh, wait=12)["status"] == "succeeded"


def test_the_news_beat_while_nothing_happens(pair: Pair) -> None:
    """A comment comes every few seconds, so that a proxy keeps the stream; to ask for the head alone ends at once."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    with news(pair[0], refid, seconds=7) as stream:
        assert begun(stream)
        assert [stream.readline() for _ in range(5)] == [b"\n", b": \n", b"\n", b": \n", b"\n"]


def test_the_head_of_the_news_is_no_stream(pair: Pair) -> None:
    """HEAD is answered and over, or refused: it keeps no place among the open pages."""
    refid = pair[0].start(NEVER_ACTS)["refid"]
    with news(pair[0], refid, method="HEAD") as stream:
        assert stream.read() == b""
        eventually(lambda: metric(pair[0], "kpayd_streams") == 0)
