"""The kpayd command: nothing but argument reading and calls."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from app import __version__
from app.cli import clients, deliveries, develop, laptop, payments, run
from app.settings import SettingsError

app = typer.Typer(
    name="kpayd",
    help="The payments service between your own systems and K-Pay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
laptop.install(app)
develop.install(app)
run.install(app)
app.add_typer(clients.app, name="clients")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(payments.app, name="payments")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"kpayd {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


def main() -> None:
    """Run `kpayd`; a mistake in the settings ends it with one line for each, and exit code 2."""
    try:
        app()
    except SettingsError as exc:
        console = Console(stderr=True, highlight=False)
        for line in exc.lines:
            console.print(f"kpayd: {line}", markup=False, soft_wrap=True)
        sys.exit(2)
