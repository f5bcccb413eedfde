"""The inbox and the timeline by the month in which a payment was made (app/months.py).

Nobody is held up: the keys are built and the check is made while everybody goes on, and in the end one short
transaction puts the tables that there were under the new ones, as their part `before`. It is not copied.

The rows that there are have no month, nor have those that the code before writes: `-infinity`. So the same words of
K-Pay's about a payment from before this, once more, stand once more in its timeline; they change nothing.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEYS = {"evidence": "refid, digest", "events": "refid, seq"}
_INDEXES = {
    "events_outbox_idx": ("events", "(created_at)", "position IS NULL AND type <> 'evidence'"),
    "events_feed_idx": ("events", "(client, position)", "position IS NOT NULL"),
}
_VACUUM = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
}
_WITH = {"evidence": "", "events": f" WITH ({', '.join(f'{name} = {value}' for name, value in _VACUUM.items())})"}


def upgrade() -> None:
    for table in _KEYS:
        op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS month date NOT NULL DEFAULT '-infinity'")
        # A run that was cut short has left it there.
        _all_the_same("ban-drop-constraint", f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_is_before")
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_is_before CHECK (month = '-infinity') NOT VALID")
    with op.get_context().autocommit_block():
        # They wait for every transaction that is under way, and hold up nobody meanwhile.
        op.execute("SET lock_timeout = 0")
        for table, key in _KEYS.items():
            # One that was cut short stays behind, invalid.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {table}_before_pkey")
            op.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {table}_before_pkey ON {table} ({key}, month)")
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_is_before")
        op.execute("SET lock_timeout = '200ms'")
    for table, key in _KEYS.items():
        _put_under(table, key)


def _all_the_same(rule: str, statement: str) -> None:
    """Execute what the linter warns of: in one transaction, the table and its keys are there under the same names."""
    op.execute(f"-- squawk-ignore {rule}\n{statement}")


def _put_under(table: str, key: str) -> None:
    before = f"{table}_before"
    _all_the_same("ban-drop-constraint", f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {before}_pkey PRIMARY KEY USING INDEX {before}_pkey")
    _all_the_same("renaming-table", f"ALTER TABLE {table} RENAME TO {before}")
    mine = {name: rest for name, (of, *rest) in _INDEXES.items() if of == table}
    for name in mine:
        _all_the_same("renaming-object", f"ALTER INDEX {name} RENAME TO {name.replace(table, before)}")
    op.execute(
        f"CREATE TABLE {table} (LIKE {before} INCLUDING DEFAULTS INCLUDING STORAGE, "
        f"CONSTRAINT {table}_pkey PRIMARY KEY ({key}, month)) PARTITION BY RANGE (month)"
    )
    for name, (columns, where) in mine.items():
        op.execute(f"CREATE INDEX {name} ON {table} {columns} WHERE {where}")
    first = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"
    op.execute(
        f"DO $$ BEGIN EXECUTE format('ALTER TABLE {table} ATTACH PARTITION {before} "
        f"FOR VALUES FROM (MINVALUE) TO (%L)', {first}); END $$"
    )
    _all_the_same("ban-drop-constraint", f"ALTER TABLE {before} DROP CONSTRAINT {table}_is_before")
    op.execute(f"CREATE TABLE {table}_rest PARTITION OF {table} DEFAULT{_WITH[table]}")


def downgrade() -> None:
    for table, key in _KEYS.items():
        _take_from_under(table, key)


def _take_from_under(table: str, key: str) -> None:
    before = f"{table}_before"
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns(table) if column["name"] != "month"]
    names, same = ", ".join(columns), " AND ".join(f"{table}.{name} = b.{name}" for name in key.split(", "))
    op.execute(f"ALTER TABLE {table} DETACH PARTITION {before}")
    op.execute(f"ALTER TABLE {before} DROP CONSTRAINT {before}_pkey")
    op.execute(f"ALTER TABLE {before} DROP COLUMN month")
    # The same words may stand in two months, where the code before wrote one of them.
    op.execute(f"DELETE FROM {table} USING {before} AS b WHERE {same}")  # noqa: S608 - our own names
    op.execute(f"INSERT INTO {before} ({names}) SELECT {names} FROM {table}")  # noqa: S608 - our own names
    op.execute(f"DROP TABLE {table}")
    op.execute(f"ALTER TABLE {before} RENAME TO {table}")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({key})")
    for name, (of, *_) in _INDEXES.items():
        if of == table:
            op.execute(f"ALTER INDEX {name.replace(table, before)} RENAME TO {name}")
