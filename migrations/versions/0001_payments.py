"""The tables of the main job: payments, their timeline and evidence, claimed names, API clients."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "claims",
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("client", "kind", "value", name=op.f("claims_pkey")),
    )
    op.create_table(
        "clients",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("previous_key_hash", sa.LargeBinary(), nullable=True),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("webhook_secret", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("clients_pkey")),
    )
    op.create_index("clients_key_hash_idx", "clients", ["key_hash"], unique=True)
    op.create_index("clients_previous_key_hash_idx", "clients", ["previous_key_hash"], unique=True)
    op.create_table(
        "events",
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("tid", sa.Text(), nullable=True),
        sa.Column("momtransactionid", sa.Text(), nullable=True),
        sa.Column("payaccount", sa.Text(), nullable=True),
        sa.Column("statusid", sa.Text(), nullable=True),
        sa.Column("statusdesc", sa.Text(), nullable=True),
        sa.Column("retcode", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("refid", "seq", name=op.f("events_pkey")),
    )
    op.create_table(
        "evidence",
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("remote", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("refid", "digest", name=op.f("evidence_pkey")),
    )
    op.create_table(
        "payments",
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("pmethod", sa.Text(), nullable=False),
        sa.Column("bankid", sa.Text(), nullable=False),
        sa.Column("msisdn", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("cname", sa.Text(), nullable=False),
        sa.Column("cnumber", sa.Text(), nullable=False),
        sa.Column("redirecturl", sa.Text(), nullable=False),
        sa.Column("logourl", sa.Text(), nullable=True),
        sa.Column("orderid", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("tid", sa.Text(), nullable=True),
        sa.Column("checkout_url", sa.Text(), nullable=True),
        sa.Column("momtransactionid", sa.Text(), nullable=True),
        sa.Column("payaccount", sa.Text(), nullable=True),
        sa.Column("statusid", sa.Text(), nullable=True),
        sa.Column("statusdesc", sa.Text(), nullable=True),
        sa.Column("retcode", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("failure_detail", sa.Text(), nullable=True),
        sa.Column("failure_retcode", sa.Text(), nullable=True),
        sa.Column("review_reasons", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("final_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("doubt_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_check_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("check_step", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("wake_step", sa.SmallInteger(), nullable=True),
        sa.Column("recheck", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('created', 'pending', 'succeeded', 'failed', 'expired')", name=op.f("payments_status_check")
        ),
        sa.CheckConstraint("amount > 0", name=op.f("payments_amount_check")),
        sa.PrimaryKeyConstraint("refid", name=op.f("payments_pkey")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "payments_client_idx",
        "payments",
        ["client", sa.literal_column("created_at DESC"), sa.literal_column("refid DESC")],
        unique=False,
    )
    op.create_index(
        "payments_created_idx",
        "payments",
        [sa.literal_column("created_at DESC"), sa.literal_column("refid DESC")],
        unique=False,
    )
    op.create_index(
        "payments_due_idx",
        "payments",
        ["next_check_at"],
        unique=False,
        postgresql_where=sa.text("next_check_at IS NOT NULL"),
    )
    op.create_index(
        "payments_momtransactionid_idx",
        "payments",
        ["momtransactionid"],
        unique=False,
        postgresql_where=sa.text("momtransactionid IS NOT NULL"),
    )
    op.create_index(
        "payments_msisdn_idx",
        "payments",
        ["msisdn", sa.literal_column("created_at DESC"), sa.literal_column("refid DESC")],
        unique=False,
    )
    op.create_index(
        "payments_order_idx",
        "payments",
        ["client", "orderid"],
        unique=False,
        postgresql_where=sa.text("orderid IS NOT NULL"),
    )
    op.create_index(
        "payments_review_idx",
        "payments",
        [sa.literal_column("created_at DESC"), sa.literal_column("refid DESC")],
        unique=False,
        postgresql_where=sa.text("review_reasons <> '{}'"),
    )
    op.create_index(
        "payments_status_idx",
        "payments",
        ["status", sa.literal_column("created_at DESC"), sa.literal_column("refid DESC")],
        unique=False,
    )
    op.create_index("payments_tid_idx", "payments", ["tid"], unique=False, postgresql_where=sa.text("tid IS NOT NULL"))


def downgrade() -> None:
    op.drop_index("payments_tid_idx", table_name="payments", postgresql_where=sa.text("tid IS NOT NULL"))
    op.drop_index("payments_status_idx", table_name="payments")
    op.drop_index("payments_order_idx", table_name="payments", postgresql_where=sa.text("orderid IS NOT NULL"))
    op.drop_index("payments_review_idx", table_name="payments", postgresql_where=sa.text("review_reasons <> '{}'"))
    op.drop_index("payments_msisdn_idx", table_name="payments")
    op.drop_index(
        "payments_momtransactionid_idx", table_name="payments", postgresql_where=sa.text("momtransactionid IS NOT NULL")
    )
    op.drop_index("payments_due_idx", table_name="payments", postgresql_where=sa.text("next_check_at IS NOT NULL"))
    op.drop_index("payments_created_idx", table_name="payments")
    op.drop_index("payments_client_idx", table_name="payments")
    op.drop_table("payments")
    op.drop_table("evidence")
    op.drop_table("events")
    op.drop_index("clients_previous_key_hash_idx", table_name="clients")
    op.drop_index("clients_key_hash_idx", table_name="clients")
    op.drop_table("clients")
    op.drop_table("claims")
