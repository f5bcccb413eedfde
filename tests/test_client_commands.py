"""`kpayd clients` and `kpayd deliveries`: two keys and two secrets at a time, and where notifications go."""

import json

import httpx2
import pytest

from tests.support import Json, Service, eventually, new_refid, query, run_command


def told(service: Service, *arguments: str) -> Json:
    """Return what a command prints as JSON."""
    done = run_command(service.env, "clients", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    value: Json = json.loads(done.stdout)
    return value


def listed(service: Service, name: str) -> Json:
    """Return one client of `clients list`."""
    clients = json.loads(run_command(service.env, "clients", "list", "--json").stdout)
    found: Json = next(client for client in clients if client["name"] == name)
    return found


def works(service: Service, key: str) -> bool:
    """Whether a key is let in."""
    with service.client(key) as http:
        return http.get("/v1/payments").status_code == httpx2.codes.OK


def secrets(service: Service, name: str) -> list[str | None]:
    """Return the secrets that a client's notifications are signed with, the newest first."""
    sql = "SELECT webhook_secret, previous_webhook_secret FROM clients WHERE name = $1"
    return list(query(service.database_url, sql, name)[0])


def test_key_and_secret_rotate_together_or_alone(service: Service) -> None:
    """Each rotation keeps the one before; what is not chosen stays as it was."""
    name = f"turns.{new_refid()}"
    first = told(service, "add", name)
    both = told(service, "rotate", name)
    assert both["key"] != first["key"]
    assert secrets(service, name) == [both["webhook_secret"], first["webhook_secret"]]
    key = told(service, "rotate", name, "--only", "key")
    assert key["webhook_secret"] == both["webhook_secret"]
    assert secrets(service, name) == [both["webhook_secret"], first["webhook_secret"]]
    secret = told(service, "rotate", name, "--only", "secret")
    assert secret["key"] == ""
    assert secrets(service, name) == [secret["webhook_secret"], both["webhook_secret"]]
    assert works(service, both["key"])
    assert works(service, key["key"])
    history = json.loads(run_command(service.env, "clients", "show", name, "--json").stdout)
    assert [(each["type"], each["detail"]) for each in history] == [
        ("added", None),
        ("rotated", "key and webhook secret"),
        ("rotated", "key"),
        ("rotated", "webhook secret"),
    ]


def test_what_has_leaked_ends_at_once(service: Service) -> None:
    """With `--at-once` nothing of before is valid, within ten seconds everywhere."""
    name = f"leaked.{new_refid()}"
    first = told(service, "add", name)
    assert works(service, first["key"])
    second = told(service, "rotate", name, "--at-once")
    assert secrets(service, name) == [second["webhook_secret"], None]
    assert works(service, second["key"])
    assert eventually(lambda: not works(service, first["key"]), seconds=10)


def test_it_is_told_when_each_key_was_used(service: Service) -> None:
    """Whoever rotates sees whether the old key is still in use; a key that nobody used has no time."""
    name = f"used.{new_refid()}"
    first = told(service, "add", name)["key"]
    assert listed(service, name)["key_used_at"] is None
    assert works(service, first)
    used = eventually(lambda: listed(service, name)["key_used_at"], seconds=20, every=1)
    told(service, "rotate", name)
    after = listed(service, name)
    assert (after["key_used_at"], after["previous_key_used_at"]) == (None, used)


@pytest.mark.parametrize(
    "url",
    [
        *("http://shop.example.rw/hook", "ftp://shop.example.rw/", "shop.example.rw", "https://", "https://a@b.rw/"),
        *("https://127.0.0.1/", "https://2130706433/", "https://[::1]/", "https://10.0.0.1/", "https://localhost/"),
    ],
)
def test_fault_50_an_operator_is_told_that_a_url_leads_inside(url: str, service: Service) -> None:
    """A webhook URL that is not https, or leads inside, is refused when it is given, and the line says why."""
    for command in (("add", f"no.{new_refid()}", "--webhook-url", url), ("webhook", "shop", url)):
        done = run_command(service.env, "clients", *command)
        assert done.returncode == 2, done.stderr
        assert "must" in done.stderr or "right is" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert listed(service, "shop")["webhook_url"] is None


def test_where_notifications_go_is_set_and_unset(service: Service) -> None:
    """A URL can be given later, and taken back; hosts that the setting lists may be http."""
    name = f"hooked.{new_refid()}"
    told(service, "add", name)
    env = {**service.env, "KPAYD_WEBHOOK_HOSTS": "hooks.internal, 10.0.0.0/8"}
    for url in ("https://shop.example.rw/hook", "http://hooks.internal/hook", "http://10.1.2.3:8080/hook"):
        done = run_command(env, "clients", "webhook", name, url)
        assert done.returncode == 0, done.stderr
        assert listed(service, name)["webhook_url"] == url
    assert run_command(env, "clients", "webhook", name, "--off").returncode == 0
    assert listed(service, name)["webhook_url"] is None
    for arguments in ((name,), (name, "https://shop.example.rw/", "--off")):
        assert run_command(env, "clients", "webhook", *arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clients", "rotate", "shop", "--only", "door"), "--only must be key or secret"),
        (("clients", "show", "nobody-has-this"), "there is no client"),
        (("clients", "webhook", "nobody-has-this", "--off"), "there is no client"),
        (("deliveries", "list", "--state", "lost"), "--state must be"),
        (("deliveries", "retry"), "give an id"),
        (("deliveries", "retry", "order-1"), "the id must be one"),
        (("deliveries", "retry", "evt_order-1_1"), "nothing to send again"),
    ],
)
def test_commands_say_what_is_wrong(arguments: tuple[str, ...], words: str, service: Service) -> None:
    """A mistake is one clear line and no success."""
    done = run_command(service.env, *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_where_payers_may_be_sent_is_set_and_unset(service: Service) -> None:
    """Hosts given with `add` or `redirects` are listed, once each in lower case, and noted; `--any` takes them off."""
    name = f"sends.{new_refid()}"
    told(service, "add", name, "--redirect-host", "Shop.Example.RW.", "--redirect-host", "shop.example.rw")
    assert listed(service, name)["redirect_hosts"] == ["shop.example.rw"]
    done = run_command(service.env, "clients", "redirects", name, "pay.example.com", "127.0.0.1", "localhost")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{name} may send payers to pay.example.com, 127.0.0.1, localhost within ten seconds\n"
    assert listed(service, name)["redirect_hosts"] == ["pay.example.com", "127.0.0.1", "localhost"]
    done = run_command(service.env, "clients", "redirects", name, "--any")
    assert (done.returncode, done.stdout) == (0, f"{name} may send payers to any host within ten seconds\n")
    assert listed(service, name)["redirect_hosts"] == []
    assert listed(service, "shop")["redirect_hosts"] == []
    history = json.loads(run_command(service.env, "clients", "show", name, "--json").stdout)
    assert [(each["type"], each["detail"]) for each in history] == [
        ("added", None),
        ("redirect_hosts_set", "pay.example.com 127.0.0.1 localhost"),
        ("redirect_hosts_set", "any"),
    ]


@pytest.mark.parametrize(
    "host",
    [
        *(
            "https://shop.example.rw",
            "shop.example.rw/",
            "shop.example.rw:443",
            "",
            "*.example.rw",
            "user@shop.example.rw",
        ),
        *("shop.example.rw..", "2130706433", "sh\u043ep.example.rw", "x" * 254, "a\nb", "192.0.2.7"),
    ],
    ids=ascii,
)
def test_an_operator_is_told_what_a_host_is(host: str, service: Service) -> None:
    """A URL, a port, a wild card or nothing is refused in one line, and no client is made or changed."""
    for option, *command in (
        ("--redirect-host", "add", "never.made", f"--redirect-host={host}"),
        ("HOSTS", "redirects", "shop", "shop.example.rw", "--", host),
    ):
        done = run_command(service.env, "clients", *command)
        assert (done.returncode, done.stdout) == (2, "")
        right = "must be a host's name without scheme, port or path, e.g. shop.example.rw"
        assert done.stderr == f"kpayd: {option} {right}\n"
    sql = "SELECT name, redirect_hosts FROM clients WHERE name IN ('shop', 'never.made')"
    assert [tuple(row) for row in query(service.database_url, sql)] == [("shop", [])]


def test_redirects_wants_hosts_or_any(service: Service) -> None:
    """Neither, both, or a client that is not there is one clear line; an unknown client is another exit code."""
    for arguments in (("shop",), ("shop", "shop.example.rw", "--any")):
        done = run_command(service.env, "clients", "redirects", *arguments)
        assert (done.returncode, done.stderr) == (2, "kpayd: give hosts, or --any\n")
    done = run_command(service.env, "clients", "redirects", "nobody-has-this", "shop.example.rw")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no client 'nobody-has-this'" in done.stderr
