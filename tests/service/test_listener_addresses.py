"""Who may speak to the listener, and a postback that meets the success half-way."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx2
import pytest

from tests.conftest import QUICK
from tests.support import Json, Service, Simulator, bodies, eventually, metric, new_refid, query, run_service

NEVER_ACTS = "250780000005"
KPAY = "10.1.2.3"
"""An address that postbacks may come from."""
ALLOWED = QUICK | {"POSTBACK_ALLOWED_IPS": "10.0.0.0/8, 2001:db8::/32"}


@pytest.fixture(scope="module")
def fenced(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that takes postbacks from K-Pay's addresses and trusts no proxy."""
    with run_service(tmp_path_factory.mktemp("fenced"), new_database(), simulator, ALLOWED) as service:
        yield service


@pytest.fixture(scope="module")
def proxied(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run the same behind proxies that it trusts, and let it ask K-Pay only when it is told to."""
    more = ALLOWED | {"TRUSTED_PROXIES": "127.0.0.0/8, 192.168.0.0/16", "CHECK_SCHEDULE": "3600"}
    with run_service(tmp_path_factory.mktemp("proxied"), new_database(), simulator, more) as service:
        yield service


def post(service: Service, of: Json, *forwarded: str, **changes: object) -> httpx2.Response:
    """Send a postback for a payment, with an X-Forwarded-For for each address."""
    said = {"tid": of["tid"], "refid": of["refid"], "momtransactionid": f"m{new_refid()}", "statusid": "01"} | changes
    headers = [("X-Forwarded-For", each) for each in forwarded]
    return httpx2.post(f"{service.url}{service.returl(of['refid'])}", json=said, headers=headers, trust_env=False)


@pytest.mark.parametrize("header", [None, "X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP"])
def test_fault_55_an_address_outside_is_turned_away_whatever_it_claims(header: str | None, fenced: Service) -> None:
    """Who speaks from outside the allowed addresses is 403 and stores nothing, whatever its headers claim."""
    begun = fenced.start(NEVER_ACTS)
    forbidden = 'kpayd_postbacks_total{answer="forbidden"}'
    before = metric(fenced, forbidden)
    headers = {header: f"for={KPAY}" if header == "Forwarded" else KPAY} if header else {}
    answer = fenced.http.post(fenced.returl(begun["refid"]), json={"refid": begun["refid"]}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert bodies(fenced, begun["refid"]) == []
    assert metric(fenced, forbidden) == before + 1


@pytest.mark.parametrize(
    ("forwarded", "taken"),
    [
        ([], False),
        ([""], False),
        ([KPAY], True),
        (["2001:db8::7"], True),
        ([f"::ffff:{KPAY}"], True),
        (["8.8.8.8"], False),
        ([f"8.8.8.8, {KPAY}"], True),
        ([f"{KPAY}, 8.8.8.8"], False),
        ([f"{KPAY}, 192.168.1.1"], True),
        ([f"{KPAY},192.168.1.1 , 127.0.0.9"], True),
        ([f"{KPAY}, 8.8.8.8, 192.168.1.1"], False),
        ([KPAY, "8.8.8.8"], False),
        (["8.8.8.8", KPAY], True),
        ([f"{KPAY}, junk"], False),
        (["junk"], False),
    ],
)
def test_fault_55_a_proxy_is_believed_from_the_right(forwarded: list[str], taken: bool, proxied: Service) -> None:  # noqa: FBT001
    """The last address that no trusted proxy has is who sent it; what stands left of it is not believed."""
    begun = proxied.start(NEVER_ACTS)
    assert post(proxied, begun, *forwarded).status_code == (200 if taken else 403)
    assert len(bodies(proxied, begun["refid"])) == taken


def test_fault_10_a_refusal_stored_behind_the_success_is_looked_at(proxied: Service, simulator: Simulator) -> None:
    """A postback that says not paid and waits for the row while the success is written is seen as against it."""
    begun = proxied.start(NEVER_ACTS)
    refid = begun["refid"]
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    def waiting(count: int) -> None:
        eventually(lambda: len(query(proxied.database_url, waits)) >= count, seconds=1.5, every=0.01)

    simulator.settle(refid, "01", postback=False)
    with asyncio.Runner() as holder, ThreadPoolExecutor() as pool:
        lock = holder.run(asyncpg.connect(proxied.database_url))
        holder.run(lock.execute("BEGIN"))
        holder.run(lock.execute("SELECT FROM payments WHERE refid = $1 FOR UPDATE", refid))
        check = pool.submit(proxied.http.post, f"/v1/payments/{refid}/check")
        waiting(1)
        refusal = pool.submit(post, proxied, begun, KPAY, statusid="02", momtransactionid="")
        waiting(2)
        holder.run(lock.execute("COMMIT"))
        assert (check.result().json()["status"], refusal.result().status_code) == ("succeeded", 200)
        holder.run(lock.close())
    in_order = [(event["type"], event["statusid"]) for event in proxied.events(refid)[2:4]]
    assert in_order == [("payment.succeeded", "01"), ("evidence", "02")]
    assert proxied.read(refid)["review_reasons"] == ["contradiction"]


def test_what_is_new_of_a_payment_is_on_no_open_page(proxied: Service) -> None:
    """What K-Pay says for the first time is shown to operators: a payer's number in it is not for everybody."""
    begun = proxied.start(NEVER_ACTS)
    assert post(proxied, begun, KPAY, statusid=NEVER_ACTS, **{NEVER_ACTS: "a member"}).status_code == 200
    for path in ("/readyz", "/metrics"):
        assert NEVER_ACTS not in httpx2.get(f"{proxied.url}{path}", trust_env=False).text, path
    assert NEVER_ACTS not in proxied.process.words
