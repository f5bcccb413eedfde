"""Where payers may be sent in the end: https only, one reading of every address, and the client's own hosts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.macs import Macs
from tests.conftest import QUICK
from tests.support import (
    SECRET_KEY,
    Service,
    Simulator,
    eventually,
    new_refid,
    payment,
    query,
    run_command,
    run_service,
)

NEVER_ACTS = "250780000005"
HOSTS = ("shop.example.rw", "pay.example.com")
FORGET_SECONDS = 5
"""How long a process trusts what it knows of a client."""


@pytest.fixture(scope="module")
def public(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Run a service that payers reach at a public address."""
    more = QUICK | {"PUBLIC_URL": "https://pay.example.rw"}
    with run_service(tmp_path_factory.mktemp("public"), new_database(), simulator, more) as service:
        yield service


def command(service: Service, *arguments: str) -> str:
    """Run `kpayd clients ...` and return what it says; fails unless it succeeds."""
    done = run_command(service.env, "clients", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def limited(service: Service, *hosts: str) -> Iterator[tuple[str, httpx2.Client]]:
    """Make a client whose payers may be sent to `hosts` only; yield its name, and what it calls with."""
    name = f"limited-{new_refid()}"
    key = service.new_key(name)
    command(service, "redirects", name, *hosts)
    with service.client(key) as http:
        yield name, http


def refused(answer: httpx2.Response, url: str) -> None:
    """See that an address was refused, and that the answer names the field and does not say it again."""
    assert answer.status_code == 422, (url, answer.text)
    assert [each["field"] for each in answer.json()["errors"]] == ["redirecturl"], url
    assert url not in answer.text
    assert "evil" not in answer.text


def way_on(service: Service, refid: str) -> httpx2.Response:
    """Come back as the payer's browser does."""
    with service.client(None) as http:
        return http.get(f"/kpay/return/{refid}/{Macs([SECRET_KEY]).make('return', refid)}")


def start(http: httpx2.Client, url: str, **changes: object) -> httpx2.Response:
    """Ask for a payment whose payer ends up at `url`."""
    return http.post("/v1/payments", json=payment(NEVER_ACTS, redirecturl=url, **changes))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://shop.example.rw/",
            "http://localhost/done",
            "http://127.0.0.1:8080/",
            "http://[::1]/",
            "HTTP://x.rw/",
        ),
        *(
            "https://user@evil.rw/",
            "https://user:pw@evil.rw/",
            "https://@evil.rw/",
            "https://shop.example.rw:x@evil.rw/",
        ),
        *("https://shop.example.rw\\@evil.rw", "https:\\\\evil.rw", "https://evil.rw\\.shop.example.rw/"),
        *(
            "javascript:alert(1)",
            "javascript://evil.rw/%0aalert(1)",
            "data:text/html,evil",
            "ftp://evil.rw/",
            "file:///",
        ),
        *(
            "//evil.rw/",
            "/done",
            "evil.rw",
            "https:/x",
            "https:evil.rw",
            "https:///evil.rw",
            "https://",
            "https://?evil",
        ),
        *("https://ev\til.rw/", "https://evil.rw/\n", "ht\ntps://evil.rw/", "https://evil.rw/a\r\nSet-Cookie: x=1"),
        *(
            "https://evil.rw/\0",
            "https://evil.rw/\x7f",
            "https://evil.rw/a b",
            "https://evil.rw/\u2028",
            "java\nscript:x",
        ),
        *(
            "https://sh\u043ep.example.rw/",
            "https://evil。rw/",
            "https://evil.rw/é",
            "https://\uff45vil.rw/",
            "https://evil\u00ad.rw/",
        ),
        *(
            "https://evil%2erw/",
            "https://evil.rw./",
            "https://.evil.rw/",
            "https://evil.rw:0/",
            "https://evil.rw:99999/",
        ),
        *(
            "https://evil.rw:x/",
            "https://[evil.rw]/",
            "https://[::1/",
            "https://evil_1.rw/",
            "https://evil.rw/{x}",
            "https://*/",
        ),
        *(
            "https://evil.rw/?<script>",
            'https://evil.rw/"x',
            "https://evil.rw/`",
            "https://evil.rw/^",
            "https://evil.rw|x",
        ),
    ],
    ids=ascii,
)
def test_what_is_no_plain_https_address_is_refused(url: str, public: Service) -> None:
    """Anything that two readers might read differently, or that is not https, is 422 where payers are the public."""
    answer = start(public.http, url)
    if url.strip() != url:  # space around it is taken off, as in every text
        assert answer.status_code == 201
        assert answer.json()["redirecturl"] == url.strip()
        return
    refused(answer, url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://shop.example.rw", "https://SHOP.Example.RW/Done", "https://shop.example.rw:8443/", "https://x.rw:/"),
        *("https://xn--shp-bhd.example.rw/", "https://192.0.2.7/", "https://[2001:db8::1]/done", "https://localhost/"),
        *("https://shop.example.rw/#@evil.rw", "https://shop.example.rw?@evil.rw", "https://shop.example.rw/@evil.rw"),
        *(
            "https://shop.example.rw//evil.rw",
            "https://shop.example.rw/?to=https://evil.rw/",
            "HTTPS://shop.example.rw/",
        ),
    ],
)
def test_every_plain_https_address_is_accepted(url: str, public: Service) -> None:
    """Upper case, a port, an address and what stands after the host are the caller's own affair."""
    answer = start(public.http, url)
    assert answer.status_code == 201, answer.text
    assert answer.json()["redirecturl"] == url


@pytest.mark.parametrize("url", ["http://localhost:3000/done", "http://127.0.0.1/", "http://[::1]:8080/"])
def test_a_laptop_may_send_payers_to_itself(url: str, service: Service, public: Service) -> None:
    """A loopback host by http is accepted where this service has a loopback address too, and nowhere else."""
    assert start(service.http, url).status_code == 201
    refused(start(public.http, url), url)
    refused(start(service.http, "http://shop.example.rw/"), "http://shop.example.rw/")


@pytest.mark.parametrize(
    "url",
    [
        *("https://evil.rw/", "https://example.rw/", "https://www.shop.example.rw/", "https://evil-shop.example.rw/"),
        *(
            "https://shop.example.rw.evil.rw/",
            "https://shopexample.rw/",
            "https://shop.example.rwx/",
            "https://192.0.2.7/",
        ),
        *("https://evil.rw/shop.example.rw", "https://evil.rw?shop.example.rw", "https://evil.rw#shop.example.rw"),
        *("https://evil.rw:443/", "https://evil.rw/@shop.example.rw", "https://evil.rw/https://shop.example.rw/"),
        *(
            "https://shop.example.rw@evil.rw/",
            "https://shop.example.rw\\.evil.rw/",
            "https://shop.example.rw%2eevil.rw/",
        ),
        *("https://shop.example.rw./", "https://shop.example.rw%00.evil.rw/", "https://[::1]/", "https://localhost/"),
        *("https://xn--shp-bhd.example.rw/", "https://evil.rw&.shop.example.rw/", "https://evil.rw;.shop.example.rw/"),
    ],
)
def test_a_client_with_hosts_sends_payers_nowhere_else(url: str, public: Service) -> None:
    """Sub-domains, look-alikes, suffixes and tricks with the rest of the address are other hosts: 422."""
    with limited(public, *HOSTS) as (name, http):
        refused(start(http, url), url)
        assert query(public.database_url, "SELECT 1 FROM payments WHERE client = $1", name) == []


def test_a_client_with_hosts_sends_payers_there(public: Service) -> None:
    """Each of its hosts is accepted, in any case, at any port, with any path; `logourl` is another matter."""
    with limited(public, *HOSTS) as (_, http):
        for url in ("https://shop.example.rw", "https://SHOP.EXAMPLE.RW/x", "https://pay.example.com:8443/?a#b"):
            assert start(http, url, logourl="https://cdn.example.net/logo.png").status_code == 201, url
        both = start(http, "https://evil.rw/", currency="USD").json()
        assert [each["field"] for each in both["errors"]] == ["currency", "redirecturl"]
    assert start(public.http, "https://evil.rw/").status_code == 201  # a client without a list


def test_another_list_is_for_payments_to_come(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """Within five seconds a list rules what is started; payments from before lead where they were told to."""
    old, new = "https://shop.example.rw/done", "https://new.example.rw/done"
    with (
        run_service(tmp_path, new_database(), simulator, QUICK) as service,
        limited(service, "shop.example.rw") as (name, http),
    ):
        refid = start(http, old).json()["refid"]
        command(service, "redirects", name, "new.example.rw")
        eventually(lambda: start(http, new).status_code == 201, seconds=FORGET_SECONDS + 3)
        refused(start(http, old), old)
        assert http.get(f"/v1/payments/{refid}").json()["redirecturl"] == old
        simulator.settle(refid, "01", postback=False)
        assert http.get(f"/v1/payments/{refid}", params={"wait": 10}).json()["status"] == "succeeded"
        assert way_on(service, refid).headers["location"] == f"{old}?refid={refid}&status=succeeded"
        command(service, "redirects", name, "--any")
        eventually(lambda: start(http, "https://evil.rw/").status_code == 201, seconds=FORGET_SECONDS + 3)


def test_a_repeated_request_is_its_payment_whatever_the_list_says_now(
    new_database: Callable[[], str], simulator: Simulator, tmp_path: Path
) -> None:
    """Who got no answer and asks again gets the payment that was started: 200, though the list has changed."""
    with (
        run_service(tmp_path, new_database(), simulator, QUICK) as service,
        limited(service, "shop.example.rw") as (name, http),
    ):
        refid = new_refid()
        first = start(http, "https://shop.example.rw/done", refid=refid)
        assert first.status_code == 201
        command(service, "redirects", name, "new.example.rw")
        eventually(lambda: start(http, "https://new.example.rw/").status_code == 201, seconds=FORGET_SECONDS + 3)
        again = start(http, "https://shop.example.rw/done", refid=refid)
        assert (again.status_code, again.json().get("refid")) == (200, refid)


def test_a_revoked_clients_payers_still_find_their_way(public: Service, simulator: Simulator) -> None:
    """Its payments stay, and lead on; its hosts cannot be set any more."""
    with limited(public, *HOSTS) as (name, http):
        refid = start(http, "https://shop.example.rw/done").json()["refid"]
    command(public, "revoke", name)
    simulator.settle(refid, "02", postback=False)
    answer = eventually(lambda: (came := way_on(public, refid)).status_code == 303 and came, every=1)
    assert answer.headers["location"] == f"https://shop.example.rw/done?refid={refid}&status=failed"
    done = run_command(public.env, "clients", "redirects", name, "--any")
    assert (done.returncode, "no client" in done.stderr) == (1, True)
