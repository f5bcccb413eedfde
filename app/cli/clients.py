"""`kpayd clients`: who may call the API, where they are notified, and where their payers may be sent."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.cli.output import Json, dump, err, fail, in_database, out, table
from app.domain import Scope
from app.settings import HOST_NAME, DatabaseSettings, is_loopback, load

if TYPE_CHECKING:
    from app.clients import Clients, Credentials

T = TypeVar("T")

app = typer.Typer(help="API clients: add, list, show, rotate, webhook, redirects, revoke.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The client's name: letters, digits, dots, dashes.")]

_LONGEST_NAME = 64
_COLUMNS = (
    *("name", "scopes", "key_used_at", "previous_key_used_at", "webhook_url", "webhook_failing_since"),
    *("webhook_disabled_at", "redirect_hosts", "created_at", "revoked_at"),
)


def _with_clients(work: "Callable[[Clients], Awaitable[T]]") -> T:
    from app.clients import ClientError, Clients

    try:
        return in_database(lambda database: work(Clients(database)))
    except ClientError as exc:
        fail(str(exc))


def _checked(option: str, url: str) -> str:
    from app.addresses import Allowed, UrlRefused, check_url

    try:
        check_url(url, Allowed.of(load(DatabaseSettings).webhook_hosts))
    except UrlRefused as exc:
        fail(f"{option} {exc}", 2)
    return url


def _hosts(option: str, hosts: list[str]) -> list[str]:
    found = list(dict.fromkeys(host.lower().removesuffix(".") for host in hosts))
    if any(not (HOST_NAME.fullmatch(host) or is_loopback(host)) for host in found):
        fail(f"{option} must be a host's name without scheme, port or path, e.g. shop.example.rw", 2)
    return found


def _show(made: "Credentials", *, json: bool) -> None:
    if json:
        dump(asdict(made))
        return
    table(
        ("", ""),
        [
            ("client", made.name),
            ("key", made.key or "as before"),
            ("webhook secret", made.webhook_secret),
            ("scopes", " ".join(made.scopes)),
        ],
    )
    if made.key:
        err.print("Keep the key now: it is not shown again.")


@app.command()
def add(
    name: Name,
    webhook_url: Annotated[
        str | None, typer.Option(help="Where this client's notifications are to go (https).")
    ] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="Repeatable; all if left out.")] = None,
    redirect_host: Annotated[
        list[str] | None, typer.Option(help="Repeatable: a host that its payers may be sent to; any if left out.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a client and show its key once."""
    if not (0 < len(name) <= _LONGEST_NAME and name.isascii() and name.replace("-", "").replace(".", "").isalnum()):
        fail("NAME must be letters, digits, dots and dashes, 64 at most", 2)
    url = None if webhook_url is None else _checked("--webhook-url", webhook_url)
    scopes = list(dict.fromkeys(scope or Scope))
    hosts = _hosts("--redirect-host", redirect_host or [])
    made = _with_clients(lambda clients: clients.add(name, webhook_url=url, scopes=scopes, redirect_hosts=hosts))
    _show(made, json=json)


@app.command(name="list")
def list_(json: Json = False) -> None:
    """List all clients; keys are not among what is known of them."""
    rows = _with_clients(lambda clients: clients.all())
    if json:
        dump([{column: getattr(row, column) for column in _COLUMNS} for row in rows])
        return
    table(
        ("name", "key used", "old key used", "made", "revoked", "notifications", "payers go to", "scopes"),
        [
            (
                *(row.name, row.key_used_at, row.previous_key_used_at, row.created_at, row.revoked_at),
                _notified(row.webhook_url, failing=row.webhook_failing_since, disabled=row.webhook_disabled_at),
                " ".join(row.redirect_hosts) or "any host",
                " ".join(row.scopes),
            )
            for row in rows
        ],
    )


def _notified(url: str | None, *, failing: object, disabled: object) -> str | None:
    if url is None:
        return None
    return "disabled" if disabled else "failing" if failing else "on"


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show what was done to a client, and by its receiver, oldest first."""
    rows = _with_clients(lambda clients: clients.history(name))
    if json:
        dump([{"at": row.created_at, "type": row.type, "detail": row.detail} for row in rows])
        return
    if not rows:
        fail(f"there is no client {name!r}, or nothing was done to it since this was noted")
    table(("at", "what", ""), [(row.created_at, row.type, row.detail) for row in rows])


@app.command()
def rotate(
    name: Name,
    only: Annotated[str | None, typer.Option(help="key or secret; both if left out.")] = None,
    at_once: Annotated[bool, typer.Option("--at-once", help="End the ones before now: one has leaked.")] = False,
    json: Json = False,
) -> None:
    """Give a client a new key and webhook secret; the ones before stay valid until the next rotation."""
    if only not in (None, "key", "secret"):
        fail("--only must be key or secret", 2)
    chosen = {"key": only != "secret", "secret": only != "key"}
    _show(_with_clients(lambda clients: clients.rotate(name, **chosen, at_once=at_once)), json=json)


@app.command()
def webhook(
    name: Name,
    url: Annotated[str | None, typer.Argument(help="Where notifications are to go (https).")] = None,
    off: Annotated[bool, typer.Option("--off", help="Send none any more.")] = False,
) -> None:
    """Set where a client's notifications go; turns them on again where they were disabled."""
    if (url is None) is not off:
        fail("give a URL, or --off", 2)
    checked = None if url is None else _checked("URL", url)
    _with_clients(lambda clients: clients.notify_at(name, checked))
    told = f"{name} is notified at {checked} from now on" if checked else f"{name} is not notified any more"
    out.print(told, markup=False, soft_wrap=True)


@app.command()
def redirects(
    name: Name,
    hosts: Annotated[list[str] | None, typer.Argument(help="Hosts that its payers may be sent to in the end.")] = None,
    anywhere: Annotated[bool, typer.Option("--any", help="Let them be sent anywhere.")] = False,
) -> None:
    """Set which hosts a client's payments may send payers to; payments started before are not touched."""
    if bool(hosts) is anywhere:
        fail("give hosts, or --any", 2)
    chosen = _hosts("HOSTS", hosts or [])
    _with_clients(lambda clients: clients.redirect_to(name, chosen))
    out.print(
        f"{name} may send payers to {', '.join(chosen) or 'any host'} within ten seconds", markup=False, soft_wrap=True
    )


@app.command()
def revoke(name: Name) -> None:
    """End a client's keys and notifications for good; its payments stay."""
    _with_clients(lambda clients: clients.revoke(name))
    out.print(f"{name} is revoked; every process forgets its keys within five seconds", markup=False)
