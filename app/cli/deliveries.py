"""`kpayd deliveries`: notifications that did not arrive, and sending them again."""

from typing import Annotated

import typer

from app.cli.output import Json, dump, err, fail, in_database, out, table

app = typer.Typer(help="Notifications: list, retry.", no_args_is_help=True)

Client = Annotated[str | None, typer.Option("--client", help="Of this client only.")]

_STATES = ("parked", "waiting", "delivered", "all")


@app.command(name="list")
def list_(
    client: Client = None,
    state: Annotated[str, typer.Option(help="parked, waiting, delivered or all.")] = "parked",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 100,
    json: Json = False,
) -> None:
    """List notifications, newest first: the parked ones unless told otherwise."""
    from typing import cast, get_args

    from app import deliveries
    from app.body import event_id

    if state not in _STATES:
        fail(f"--state must be {', '.join(_STATES)}", 2)
    chosen = cast("deliveries.DeliveryState", state) if state in get_args(deliveries.DeliveryState) else None
    rows, more = in_database(lambda database: deliveries.page(database, limit=limit, state=chosen, client=client))
    if json:
        columns = (
            *("client", "type", "refid", "attempts", "http_status", "error"),
            *("created_at", "next_at", "delivered_at", "parked_at"),
        )
        told = [{name: getattr(row, name) for name in columns} for row in rows]
        ids = [{"id": event_id(row.refid, row.seq), "state": deliveries.state_of(row)} for row in rows]
        dump([one | other for one, other in zip(ids, told, strict=True)])
        return
    table(
        ("id", "client", "type", "state", "tries", "made", "next", "last error"),
        [
            (
                *(event_id(row.refid, row.seq), row.client, row.type, deliveries.state_of(row), row.attempts),
                *(row.created_at, row.next_at, row.error),
            )
            for row in rows
        ],
    )
    if more:
        err.print(f"There are more than {limit}: --limit shows more.")


@app.command()
def retry(
    event_id: Annotated[str | None, typer.Argument(help="One notification, parked or delivered, by its id.")] = None,
    client: Client = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are parked, of every client.")] = False,
    json: Json = False,
) -> None:
    """Send notifications again: one by its id, or all that are parked of a client, or of everybody."""
    from app import deliveries
    from app.feed import UnknownEvent

    if event_id is None and client is None and not everything:
        fail("give an id, --client NAME or --all", 2)
    try:
        count = in_database(lambda database: deliveries.retry(database, client=client, id_=event_id))
    except UnknownEvent:
        fail("the id must be one that `kpayd deliveries list` shows, e.g. evt_order-1042_3", 2)
    if json:
        dump({"retried": count})
        return
    if not count:
        fail("there is nothing to send again: it is on its way already, or there is no such notification")
    out.print(f"{count:,} sent again; a client that is not notified any more gets none: kpayd clients webhook")
