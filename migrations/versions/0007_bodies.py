"""Raw bodies by the month in which a payment was made (app/months.py), in a table of their own beside `evidence`.

All of it is new and empty, so nobody waits for a lock. `evidence` stays as it is: the code before goes on writing to
it, and its bodies are pruned where they lie. Whoever was granted rights on `evidence` by name has them on `bodies`,
too; a publication for logical replication must name it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bodies",
        sa.Column("refid", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("http_status", sa.SmallInteger(), nullable=True),
        sa.Column("remote", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("refid", "digest", "month", name=op.f("bodies_pkey")),
        postgresql_partition_by="RANGE (month)",
    )
    op.execute("CREATE TABLE bodies_rest PARTITION OF bodies DEFAULT")
    op.execute(_MONTHS_AND_RIGHTS)


# The month that has begun and a year ahead; later `kpayd migrate` and `kpayd prune` make those to come.
_MONTHS_AND_RIGHTS = """
DO $$ DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    following date;
    who text;
    what text;
BEGIN
    EXECUTE 'CREATE TABLE bodies_before PARTITION OF bodies FOR VALUES FROM (MINVALUE) TO ('
        || quote_literal(month) || ')';
    FOR ahead IN 0..12 LOOP
        following := month + interval '1 month';
        EXECUTE 'CREATE TABLE bodies_' || to_char(month, 'YYYY_MM') || ' PARTITION OF bodies FOR VALUES FROM ('
            || quote_literal(month) || ') TO (' || quote_literal(following) || ')';
        month := following;
    END LOOP;
    FOR who, what IN SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type
                     FROM pg_class, aclexplode(relacl) WHERE oid = 'evidence'::regclass LOOP
        EXECUTE 'GRANT ' || what || ' ON bodies TO ' || who;
    END LOOP;
END $$
"""


def downgrade() -> None:
    """Danger: the bodies that came since are gone, and what K-Pay says once more is news once more."""
    op.drop_table("bodies")
