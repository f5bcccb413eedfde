"""What the commands print: tables for people, JSON for programs. Data on standard output, everything else beside it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.settings import DatabaseSettings, load

if TYPE_CHECKING:
    from app.database import Database

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong in one line and end with `code`."""
    err.print(f"kpayd: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(code)


def call(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; a database that cannot be used ends it with one line, not a traceback."""
    from app.database import UNAVAILABLE

    try:
        return asyncio.run(work)
    except UNAVAILABLE as exc:
        cause = str(exc.__cause__ or exc).splitlines()[0] if str(exc) else type(exc).__name__
        fail(f"the database cannot be used: {cause} (KPAYD_DATABASE_URL; is the schema there? kpayd migrate)")


def in_database(work: "Callable[[Database], Awaitable[T]]") -> T:
    """Run a command's work on the database that the settings name."""
    from app.database import open_database

    settings = load(DatabaseSettings)

    async def run() -> T:
        async with open_database(settings.database_url, pool=1, pooled=settings.database_pooled) as database:
            return await work(database)

    return call(run())


def dump(value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Print `value` as JSON; times are RFC 3339."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; an absent value is a dash. Only the last column is folded: ids are copied from the others."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns[:-1]:
        grid.add_column(column, no_wrap=True)
    grid.add_column(columns[-1], overflow="fold")
    for row in rows:
        # As text: what a caller wrote is no mark-up.
        grid.add_row(*(Text("-" if value is None else _short(value)) for value in row))
    out.print(grid)


def _short(value: object) -> str:
    return f"{value:%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)
