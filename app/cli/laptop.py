"""Commands of a laptop: dev and demo."""

import json
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output import fail, out
from app.settings import PREFIX

if TYPE_CHECKING:
    from app.dev.demo import Stage
    from app.dev.laptop import Laptop

_QUICK = {
    f"{PREFIX}CHECK_SCHEDULE": "1,1,2,3,5",
    f"{PREFIX}POSTBACK_RECHECKS": "1,2",
    f"{PREFIX}UNKNOWN_GRACE": "5",
    f"{PREFIX}GATEWAY_TIMEOUT": "5",
    f"{PREFIX}LOG_FORMAT": "json",
}


def install(app: typer.Typer) -> None:
    """Add these commands to `kpayd`."""
    app.command()(dev)
    app.command()(demo)


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    import httpx2

    from app.dev.laptop import LaptopError
    from app.dev.postgres import PostgresError

    try:
        yield
    except (LaptopError, PostgresError) as exc:
        fail(str(exc))
    except httpx2.HTTPError as exc:
        fail(f"the demo was cut short: {exc}")


def dev(
    port: Annotated[int, typer.Option(help="The service's port.")] = 8000,
    simulator_port: Annotated[int, typer.Option(help="The simulator's port.")] = 8081,
    data_dir: Annotated[Path, typer.Option(help="Where data is kept between starts.")] = Path(".kpayd"),
) -> None:
    """Run everything on this laptop: embedded PostgreSQL, K-Pay simulator, service. Ctrl-C stops all of it."""
    from app.dev.laptop import started

    stop = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with (
        _told_in_one_line(),
        started(data_dir.resolve(), port=port, simulator_port=simulator_port) as laptop,
    ):
        _greet(laptop, data_dir)
        stop.wait()
        out.print("\nstopping ...")


def _greet(laptop: "Laptop", data_dir: Path) -> None:
    out.print(
        f"""kpayd is up.

  service     {laptop.url}        API documentation: {laptop.url}/docs
  simulator   {laptop.simulator_url}        its page lists magic numbers and test cards
  key         {laptop.key}
  data, logs  {data_dir}/
  database    {laptop.database_url}

Start a payment and wait for its end:

  curl -s {laptop.url}/v1/payments -H 'Authorization: Bearer {laptop.key}' \\
    -H 'Content-Type: application/json' -d '{{"refid": "order-1", "amount": 4200, "pmethod": "momo",
    "msisdn": "250788312934", "email": "ikaneza@example.rw", "details": "order 1", "cname": "KANEZA",
    "redirecturl": "https://shop.example.rw/done"}}'
  curl -s '{laptop.url}/v1/payments/order-1?wait=30' -H 'Authorization: Bearer {laptop.key}'

Ctrl-C stops all of it.""",
        markup=False,
        soft_wrap=True,
    )


def demo(
    url: Annotated[str | None, typer.Option(help="Play against this running service instead of an own one.")] = None,
    simulator_url: Annotated[str, typer.Option(help="Its simulator.")] = "http://127.0.0.1:8081",
    key: Annotated[str | None, typer.Option(help="An API key of that service.")] = None,
    client_file: Annotated[Path | None, typer.Option(help="Or what `kpayd clients add --json` printed.")] = None,
) -> None:
    """Play payments through the real HTTP loop, tell what happened, exit 0 if all ended as they should."""
    from app.dev.demo import Stage
    from app.dev.laptop import free_port, started

    if client_file is not None:
        key = json.loads(client_file.read_text())["key"]
    with _told_in_one_line():
        if url is not None:
            if key is None:
                fail("--url needs --key or --client-file", 2)
            _play(Stage(url, simulator_url, key))
            return
        with (
            tempfile.TemporaryDirectory(prefix="kpayd-demo-") as folder,
            started(
                _open_to_postgres(Path(folder)),
                port=free_port(),
                simulator_port=free_port(),
                payer_delay=0.5,
                settings=_QUICK,
            ) as laptop,
        ):
            _play(Stage(laptop.url, laptop.simulator_url, laptop.key))


def _open_to_postgres(folder: Path) -> Path:
    """Let others pass through `folder`: as root, PostgreSQL runs as nobody."""
    folder.chmod(0o711)
    return folder


def _play(stage: "Stage") -> None:
    from app.dev.demo import play

    out.print("Playing payments against the K-Pay simulator ...", markup=False)
    outcomes = []
    for outcome in play(stage):
        outcomes.append(outcome)
        mark = "[green]ok  [/]" if outcome.ok else "[red]FAIL[/]"
        out.print(f"{mark} {outcome.title}: ", end="")
        out.print(outcome.detail, markup=False, soft_wrap=True)
    wrong = sum(not outcome.ok for outcome in outcomes)
    out.print(f"{len(outcomes) - wrong} of {len(outcomes)} payments ended as they should", markup=False)
    if wrong:
        raise typer.Exit(1)
