"""Citus: which table goes where when one PostgreSQL becomes a cluster (docs/scaling.md)."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

PLACES: Mapping[str, str] = {
    "payments": "create_distributed_table('payments', 'refid', colocate_with => 'none')",
    # Beside their payment, so that one commit about one payment is one node's.
    "events": "create_distributed_table('events', 'refid', colocate_with => 'payments')",
    "deliveries": "create_distributed_table('deliveries', 'refid', colocate_with => 'payments')",
    "evidence": "create_distributed_table('evidence', 'refid', colocate_with => 'payments')",
    "bodies": "create_distributed_table('bodies', 'refid', colocate_with => 'payments')",
    # As many rows as payments, each asked for by its whole key: by `value`, since one client may have them all.
    "claims": "create_distributed_table('claims', 'value', colocate_with => 'none')",
    # Few rows, joined with deliveries wherever these are.
    "clients": "create_reference_table('clients')",
}
"""How each table is placed, in this order. All others stay where the service connects: nothing is joined with them."""

_IS_CITUS = text("SELECT 1 FROM pg_extension WHERE extname = 'citus'")
_PLACED = text(
    "SELECT relname FROM pg_dist_partition JOIN pg_class ON pg_class.oid = logicalrelid"
    " WHERE relnamespace = current_schema()::regnamespace"
)


def placing(placed: Sequence[str]) -> Sequence[str]:
    """Return the statements that place what is not yet placed; what somebody has placed stays where it is."""
    return [f"SELECT {call}" for table, call in PLACES.items() if table not in placed]


def place(connection: Connection) -> None:
    """Place the tables where the extension `citus` is installed; elsewhere nothing. Each has its own commit.

    Danger: of a table with rows, writes wait until all of them have been copied to the shards.
    """
    if connection.execute(_IS_CITUS).one_or_none() is not None:
        for statement in placing(connection.execute(_PLACED).scalars().all()):
            connection.execute(text(statement))
            connection.commit()
    connection.commit()
