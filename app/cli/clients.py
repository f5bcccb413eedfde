"""`kpayd clients`: who may call the API."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

import typer

from app.cli.output import Json, dump, err, fail, in_database, out, table
from app.domain import Scope

if TYPE_CHECKING:
    from app.clients import Clients, Credentials

T = TypeVar("T")

app = typer.Typer(help="API clients: add, list, rotate, revoke.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The client's name: letters, digits, dots, dashes.")]

_LONGEST_NAME = 64


def _with_clients(work: "Callable[[Clients], Awaitable[T]]") -> T:
    from app.clients import ClientError, Clients

    try:
        return in_database(lambda database: work(Clients(database)))
    except ClientError as exc:
        fail(str(exc))


def _show(made: "Credentials", *, json: bool) -> None:
    if json:
        dump(asdict(made))
        return
    table(
        ("", ""),
        [
            ("client", made.name),
            ("key", made.key),
            ("webhook secret", made.webhook_secret),
            ("scopes", " ".join(made.scopes)),
        ],
    )
    err.print("Keep the key now: it is not shown again.")


@app.command()
def add(
    name: Name,
    webhook_url: Annotated[
        str | None, typer.Option(help="Where this client's notifications are to go (https).")
    ] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="Repeatable; all if left out.")] = None,
    json: Json = False,
) -> None:
    """Make a client and show its key once."""
    if not (0 < len(name) <= _LONGEST_NAME and name.isascii() and name.replace("-", "").replace(".", "").isalnum()):
        fail("NAME must be letters, digits, dots and dashes, 64 at most", 2)
    if webhook_url is not None and (urlsplit(webhook_url).scheme != "https" or not urlsplit(webhook_url).hostname):
        fail("--webhook-url must be an https URL", 2)
    scopes = list(dict.fromkeys(scope or Scope))
    _show(_with_clients(lambda clients: clients.add(name, webhook_url=webhook_url, scopes=scopes)), json=json)
    if webhook_url is not None:
        err.print("The URL is kept; this version does not send notifications yet: read /v1/payments/{refid}?wait=.")


@app.command(name="list")
def list_(json: Json = False) -> None:
    """List all clients; keys are not among what is known of them."""
    rows = _with_clients(lambda clients: clients.all())
    columns = ("name", "scopes", "webhook_url", "created_at", "revoked_at")
    if json:
        dump([{column: getattr(row, column) for column in columns} for row in rows])
        return
    table(
        ("name", "scopes", "webhook url", "made", "revoked"),
        [(row.name, " ".join(row.scopes), row.webhook_url, row.created_at, row.revoked_at) for row in rows],
    )


@app.command()
def rotate(name: Name, json: Json = False) -> None:
    """Give a client a new key; the one before stays valid until the next rotation."""
    _show(_with_clients(lambda clients: clients.rotate(name)), json=json)


@app.command()
def revoke(name: Name) -> None:
    """End a client's keys for good; its payments stay."""
    _with_clients(lambda clients: clients.revoke(name))
    out.print(f"{name} is revoked; every process forgets its keys within five seconds", markup=False)
