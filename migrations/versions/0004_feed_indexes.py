"""The indexes of the feed and of what is not in it yet: built while everybody goes on, so each stands alone."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_INDEXES = (
    ("events_outbox_idx", ["created_at"], "position IS NULL AND type <> 'evidence'"),
    ("events_feed_idx", ["client", "position"], "position IS NOT NULL"),
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # It waits for every transaction that is under way, and holds up nobody meanwhile.
        op.execute("SET lock_timeout = 0")
        for name, columns, where in _INDEXES:
            # One that was cut short stays behind, invalid.
            op.drop_index(name, table_name="events", if_exists=True, postgresql_concurrently=True)
            op.create_index(name, "events", columns, postgresql_where=sa.text(where), postgresql_concurrently=True)
        op.execute("SET lock_timeout = '200ms'")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name, _, _ in _INDEXES:
            op.drop_index(name, table_name="events", postgresql_concurrently=True)
