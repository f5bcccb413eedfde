"""`kpayd payments`: the operator's look-up, timeline and check-now."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import msisdn
from app.cli.output import Json, call, dump, fail, in_database, out, table
from app.domain import Status
from app.settings import Settings, load

if TYPE_CHECKING:
    from app.database import Database
    from app.models import Row

app = typer.Typer(help="Payments: list, show, check.", no_args_is_help=True)

Refid = Annotated[str, typer.Argument(help="The payment's refid.")]


@app.command(name="list")
def list_(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    client: Annotated[str | None, typer.Option(help="Only this client's.")] = None,
    number: Annotated[str | None, typer.Option("--msisdn", help="Only this payer's.")] = None,
    tid: Annotated[str | None, typer.Option(help="Only this K-Pay reference.")] = None,
    needs_review: Annotated[
        bool | None,
        typer.Option("--needs-review/--no-needs-review", help="Only those that ask for a person, or that do not."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    json: Json = False,
) -> None:
    """List payments of all clients, newest first."""
    from app import reads

    try:
        normal = number and msisdn.normalise(number)
    except ValueError as exc:
        fail(f"--msisdn {exc}", 2)
    wanted = reads.Filter(status=status, msisdn=normal, tid=tid, needs_review=needs_review)

    rows = in_database(lambda database: reads.page(database, wanted, limit=limit, client=client)).items
    if json:
        dump([_plain(row) for row in rows])
        return
    table(
        ("created", "refid", "status", "amount", "payer", "client", "review"),
        [
            (
                row.created_at,
                row.refid,
                row.status,
                f"{row.amount:,} {row.currency}",
                f"{row.pmethod} {msisdn.masked(row.msisdn)}",
                row.client,
                ", ".join(row.review_reasons) or None,
            )
            for row in rows
        ],
    )


@app.command()
def show(refid: Refid, json: Json = False) -> None:
    """Show a payment and its timeline."""
    from app import reads

    async def find(database: "Database") -> "tuple[Row | None, Any]":
        return await reads.Lookup(database).one(refid), await reads.timeline(database, refid)

    row, events = in_database(find)
    if row is None:
        fail(f"there is no payment {refid!r}")
    _print(row, events, json=json)


@app.command()
def check(refid: Refid, json: Json = False) -> None:
    """Ask K-Pay about a payment now, and show it after that."""
    from app import logs, reads
    from app.main import open_context

    settings = load(Settings)
    logs.configure("console", "WARNING")

    async def ask() -> "tuple[Row, Any] | None":
        async with open_context(settings) as parts:
            row = await parts.lookup.one(refid)
            if row is None:
                return None
            if row.gateway != settings.gateway:
                fail(f"this payment belongs to {row.gateway}, which is not asked from here")
            return await parts.reconciler.check_now(row), await reads.timeline(parts.database, refid)

    found = call(ask())
    if found is None:
        fail(f"there is no payment {refid!r}")
    _print(*found, json=json)


def _plain(row: "Row") -> dict[str, Any]:
    from app.body import Payment

    return Payment.of(row).model_dump(mode="json") | {"client": row.client, "gateway": row.gateway}


def _print(row: "Row", events: Any, *, json: bool) -> None:  # noqa: ANN401 - rows of `events`
    if json:
        from app.api.schemas import Timeline

        dump({"payment": _plain(row), "events": Timeline.of(events).model_dump(mode="json")["items"]})
        return
    payment = _plain(row) | {"msisdn": msisdn.masked(row.msisdn), "cnumber": msisdn.masked(row.cnumber)}
    payment["payaccount"] = row.payaccount and msisdn.masked(row.payaccount)
    if row.failure_code:
        payment["failure"] = f"{row.failure_code}: {row.failure_detail}"
    table(("", ""), [(name, value) for name, value in payment.items() if value not in (None, [], {})])
    out.print()
    table(
        ("#", "when", "what", "source", "status", "K-Pay's words"),
        [
            (
                event.seq,
                event.created_at,
                event.type,
                event.source,
                event.status,
                " ".join(filter(None, (event.retcode, event.statusid, event.statusdesc, event.detail))) or None,
            )
            for event in events
        ],
    )
