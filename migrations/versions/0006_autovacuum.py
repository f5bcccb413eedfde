"""Autovacuum by the number of dead rows, not by a fifth of the table.

A payment, its events and its deliveries are written several times in their first minutes and then hardly ever. By
PostgreSQL's defaults a table of five million rows is vacuumed after a million dead ones. Until then the indexes of what
is due and of the outbox are full of dead entries at the very end where every look begins: of a million payments, with
190,000 checked and over and no vacuum, one look for due payments read 170 pages instead of 2 (and 2 after a vacuum).
The other tables keep the defaults: `evidence` and `claims` are hardly ever changed, `clients` and `feed` are small.

Statistics follow the newest rows (their times, positions and statuses), so they are taken often, too.

Room for updates (`fillfactor`) stays with `payments` alone: the updates of the other two change indexed columns, which
makes a new entry in every index however much room a page has.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = ("payments", "events", "deliveries")
_SETTINGS = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
}


def upgrade() -> None:
    settings = ", ".join(f"{name} = {value}" for name, value in _SETTINGS.items())
    for table in _TABLES:
        # SHARE UPDATE EXCLUSIVE: nobody who reads or writes waits for it, or is waited for.
        op.execute(f"ALTER TABLE {table} SET ({settings})")


def downgrade() -> None:
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(_SETTINGS)})")
