"""Commands of a deployment: serve, worker, migrate, prune, simulator, doctor."""

import os
import signal
import tempfile
from typing import Annotated

import typer

from app.cli.output import Json, call, dump, err, fail, in_database, out
from app.settings import DatabaseSettings, Settings, load

Host = Annotated[str, typer.Option(help="Address to listen on.")]


def install(app: typer.Typer) -> None:
    """Add these commands to `kpayd`."""
    for command in (serve, worker, migrate, prune, simulator, doctor):
        app.command()(command)


def serve(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve.")] = 1,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Serve the web alone; run `kpayd worker` too.")
    ] = False,
) -> None:
    """Run the service: web and worker in one process group."""
    from app import logs, main, metrics, server
    from app import worker as background

    settings = load(Settings)
    logs.configure(settings.log_format, settings.log_level)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops in order and then raises the signal again for whoever handled it before: that is the end, and
        # a clean one.
        signal.signal(number, lambda *_: None)
    if workers > 1:
        # The processes' metrics meet in files there, so that a scrape of any of them tells of all.
        os.environ.setdefault(metrics.MULTIPROCESS_DIR, tempfile.mkdtemp(prefix="kpayd-metrics-"))
    app = "app.main:web_alone" if no_worker else "app.main:from_environment"
    server.run(app, host=host, port=port, workers=workers, drain_seconds=main.DRAIN_SECONDS)
    if background.has_died():
        raise typer.Exit(1)


def worker() -> None:
    """Run the worker alone: checks and, with them, expiry."""
    import uvloop

    from app import logs, main
    from app import worker as background

    settings = load(Settings)
    logs.configure(settings.log_format, settings.log_level)
    uvloop.run(main.work(settings))
    if background.has_died():
        raise typer.Exit(1)


def migrate() -> None:
    """Bring the database to the newest schema."""
    from app import schema
    from app.database import UNAVAILABLE

    settings = load(DatabaseSettings)
    if settings.database_pooled:
        fail("migrations hold a lock between transactions: give KPAYD_DATABASE_URL without the pooler")
    try:
        schema.migrate(settings.database_url)
    except UNAVAILABLE as exc:
        fail(f"the database cannot be used: {str(exc.__cause__ or exc).splitlines()[0]} (KPAYD_DATABASE_URL)")
    err.print("kpayd: the schema is current")


def prune(
    days: Annotated[int, typer.Option("--older-than", min=30, help="Days since a payment ended.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: Json = False,
) -> None:
    """Take personal data and raw bodies out of payments that are long over; what finance needs stays."""
    from dataclasses import asdict
    from datetime import timedelta

    from app import retention

    pruned = in_database(lambda database: retention.prune(database, timedelta(days=days), dry_run=dry_run))
    if json:
        dump(asdict(pruned))
        return
    done = "would lose" if dry_run else "lost"
    out.print(
        f"{pruned.payments:,} payments {done} their personal data; {pruned.strays:,} bodies without a payment"
        + ("" if dry_run else f"; {pruned.months:,} months of bodies emptied")
    )
    for what in pruned.left:
        err.print(f"kpayd: left as they are: {what}", markup=False)


def simulator(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8081,
    payer_delay: Annotated[float, typer.Option(min=0, help="Seconds until a payer acts.")] = 1.0,
) -> None:
    """Run the K-Pay simulator alone; its own page lists the magic numbers."""
    from app.simulator import Config, serve

    out.print(f"K-Pay simulator on http://{host}:{port}/ (user kpay, password kpay, retailerid 02)", markup=False)
    serve(Config(payer_delay=payer_delay), host, port)


def doctor(json: Json = False) -> None:
    """Say of each thing a deployment needs whether it is right, and what to do if not."""
    from app.doctor import examine

    findings = call(examine())
    if json:
        dump([{"what": each.what, "ok": each.ok, "detail": each.detail} for each in findings])
    else:
        for each in findings:
            mark = "[green]ok  [/]" if each.ok else "[red]FAIL[/]"
            out.print(f"{mark} {each.what:<12}", end="")
            out.print(each.detail, markup=False, soft_wrap=True)
    if not all(each.ok for each in findings):
        raise typer.Exit(1)
