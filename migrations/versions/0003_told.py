"""What clients are told: a feed of events, deliveries of notifications, and two keys and secrets at a time."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OF_CLIENTS = (
    "key_used_at",
    "previous_key_used_at",
    "webhook_failing_since",
    "webhook_failed_at",
    "webhook_paused_until",
    "webhook_disabled_at",
)


def upgrade() -> None:
    op.add_column("events", sa.Column("state", postgresql.JSONB(), nullable=True))
    op.add_column("events", sa.Column("client", sa.Text(), nullable=True))
    op.add_column("events", sa.Column("position", sa.BigInteger(), nullable=True))
    op.alter_column("events", "created_at", server_default=sa.text("clock_timestamp()"))
    for name in _OF_CLIENTS:
        op.add_column("clients", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.add_column("clients", sa.Column("previous_webhook_secret", sa.Text(), nullable=True))
    # What happened before is history, not news: nobody is notified of it.
    op.add_column(
        "clients",
        sa.Column("webhook_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )
    feed = op.create_table(
        "feed",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("feed_pkey")),
    )
    op.bulk_insert(feed, [{"id": 1, "last": 0}])
    op.create_table(
        "deliveries",
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("parked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("refid", "seq", name=op.f("deliveries_pkey")),
    )
    op.create_index(
        "deliveries_due_idx", "deliveries", ["client", "next_at"], postgresql_where=sa.text("next_at IS NOT NULL")
    )
    op.create_index(
        "deliveries_parked_idx", "deliveries", ["client"], postgresql_where=sa.text("parked_at IS NOT NULL")
    )
    op.create_index(
        "deliveries_client_idx",
        "deliveries",
        ["client", *(sa.literal_column(f"{name} DESC") for name in ("created_at", "refid", "seq"))],
    )
    op.create_table(
        "client_events",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("client", "id", name=op.f("client_events_pkey")),
    )


def downgrade() -> None:
    for table in ("client_events", "deliveries", "feed"):
        op.drop_table(table)
    for name in ("webhook_since", "previous_webhook_secret", *_OF_CLIENTS):
        op.drop_column("clients", name)
    op.alter_column("events", "created_at", server_default=sa.text("now()"))
    for name in ("position", "client", "state"):
        op.drop_column("events", name)
