"""Guessing keys: it costs the guesser, and nobody else."""

import secrets
from collections.abc import Callable, Iterator

import httpx2
import pytest

from app.guesses import MOST
from tests.conftest import QUICK
from tests.support import Service, Simulator, metric, payment, run_service


@pytest.fixture(scope="module")
def guessed(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service behind a proxy that it trusts, so that tests can come from any address."""
    more = QUICK | {"TRUSTED_PROXIES": "127.0.0.1"}
    with run_service(tmp_path_factory.mktemp("guessed"), new_database(), simulator, more) as service:
        yield service


def guess(service: Service, address: str, key: str | None = None) -> httpx2.Response:
    """Call from `address` with a key, made up if none is given."""
    headers = {"X-Forwarded-For": address, "Authorization": f"Bearer {key or 'kpk_' + secrets.token_urlsafe(32)}"}
    return service.http.get("/v1/payments", params={"limit": 1}, headers=headers)


def test_fault_57_an_address_that_guesses_keys_is_told_to_wait(guessed: Service) -> None:
    """After 100 wrong keys in a minute an address gets 429 for more of them; right keys and other addresses go on."""
    mine = {"X-Forwarded-For": "41.186.1.1"}
    assert guessed.http.get("/v1/payments", headers=mine).status_code == 200
    statuses = [guess(guessed, "41.186.1.1").status_code for _ in range(MOST + 5)]
    assert statuses == [401] * MOST + [429] * 5
    late = guess(guessed, "41.186.1.1")
    assert late.headers["retry-after"] == "60"
    assert late.json()["code"] == "too_many_wrong_keys"
    assert metric(guessed, "kpayd_wrong_keys_total") == MOST
    # A service that shares the address with the guesser, behind one proxy perhaps, has its key known here.
    assert guessed.http.post("/v1/payments", json=payment(), headers=mine).status_code == 201
    assert guess(guessed, "41.186.1.2").status_code == 401
    assert guess(guessed, "41.186.1.2", guessed.key).status_code == 200
    assert httpx2.get(f"{guessed.url}/v1/payments", headers=mine, trust_env=False).status_code == 401
    # Nor does a key that is new here pay for the guesses of others.
    assert guess(guessed, "41.186.1.1", guessed.new_key("newcomer")).status_code == 200


def test_fault_57_a_guesser_cannot_move_within_its_ipv6_network(guessed: Service) -> None:
    """Addresses of one IPv6 network of 64 bits count as one, which one guesser may well own."""
    answers = [guess(guessed, f"2001:db8:1:2::{number:x}") for number in range(1, MOST + 2)]
    assert answers[-1].status_code == 429
    assert guess(guessed, "2001:db8:1:3::1").status_code == 401


def test_fault_57_a_call_without_a_key_is_no_guess(guessed: Service) -> None:
    """Calls without any key are 401 for ever and count as no guess."""
    plain = httpx2.Client(base_url=guessed.url, headers={"X-Forwarded-For": "41.186.1.3"}, trust_env=False)
    with plain:
        assert {plain.get("/v1/payments").status_code for _ in range(MOST + 5)} == {401}
    assert guess(guessed, "41.186.1.3").status_code == 401
