"""The inbox by the month in which a payment was made (app/months.py).

Nobody is held up: the key is built and the check is made while everybody goes on, and in the end one short transaction
puts the table that there was under the new one, as its part `before`. It is not copied.

The rows that there are have no month, nor have those that the code before writes: `-infinity`. So the same words of
K-Pay's about a payment from before this, once more, stand once more in its timeline, and have K-Pay asked once more.

Danger: the code before must be one that names the key and not its columns (app/inbox.py, the commit before this one).
Rights on the table are carried over; a publication for logical replication that names it is not.
"""

import sqlalchemy as sa
from alembic import context, op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE evidence ADD COLUMN IF NOT EXISTS month date NOT NULL DEFAULT '-infinity'")
    # A run that was cut short has left it there.
    _all_the_same("ban-drop-constraint", "ALTER TABLE evidence DROP CONSTRAINT IF EXISTS evidence_is_before")
    op.execute("ALTER TABLE evidence ADD CONSTRAINT evidence_is_before CHECK (month = '-infinity') NOT VALID")
    with op.get_context().autocommit_block():
        # They wait for every transaction that is under way, and hold up nobody meanwhile.
        op.execute("SET lock_timeout = 0")
        if not _is_built():  # one that was cut short stays behind, invalid
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS evidence_before_pkey")
            op.execute("CREATE UNIQUE INDEX CONCURRENTLY evidence_before_pkey ON evidence (refid, digest, month)")
        op.execute("ALTER TABLE evidence VALIDATE CONSTRAINT evidence_is_before")
        op.execute("SET lock_timeout = '200ms'")
    _all_the_same("ban-drop-constraint", "ALTER TABLE evidence DROP CONSTRAINT evidence_pkey")
    op.execute("ALTER TABLE evidence ADD CONSTRAINT evidence_before_pkey PRIMARY KEY USING INDEX evidence_before_pkey")
    _all_the_same("renaming-table", "ALTER TABLE evidence RENAME TO evidence_before")
    op.execute(
        "CREATE TABLE evidence (LIKE evidence_before INCLUDING DEFAULTS INCLUDING STORAGE, "
        "CONSTRAINT evidence_pkey PRIMARY KEY (refid, digest, month)) PARTITION BY RANGE (month)"
    )
    op.execute(_PARTS)
    _all_the_same("ban-drop-constraint", "ALTER TABLE evidence_before DROP CONSTRAINT evidence_is_before")
    op.execute("CREATE TABLE evidence_rest PARTITION OF evidence DEFAULT")


# The month that has begun is made here: later only those to come are.
_PARTS = """
DO $$ DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    after date := month + interval '1 month';
    who text;
    what text;
BEGIN
    EXECUTE format('ALTER TABLE evidence ATTACH PARTITION evidence_before FOR VALUES FROM (MINVALUE) TO (%L)', month);
    EXECUTE format('CREATE TABLE %I PARTITION OF evidence FOR VALUES FROM (%L) TO (%L)',
                   'evidence_' || to_char(month, 'YYYY_MM'), month, after);
    FOR who, what IN SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type
                     FROM pg_class, aclexplode(relacl) WHERE oid = 'evidence_before'::regclass LOOP
        EXECUTE format('GRANT %s ON evidence TO %s', what, who);
    END LOOP;
END $$
"""


def _is_built() -> bool:
    index = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('evidence_before_pkey')"
    return not context.is_offline_mode() and bool(op.get_bind().execute(sa.text(index)).scalar())


def _all_the_same(rule: str, statement: str) -> None:
    """Execute what the linter warns of: in one transaction, the table and its key are there under the same names."""
    op.execute(f"-- squawk-ignore {rule}\n{statement}")


_COLUMNS = "refid, digest, source, body, content_type, http_status, remote, created_at"


def downgrade() -> None:
    # The same words may stand in two months, where the code before wrote one of them.
    op.execute(
        "DELETE FROM evidence USING evidence AS first "
        "WHERE evidence.refid = first.refid AND evidence.digest = first.digest AND evidence.month > first.month"
    )
    op.execute("ALTER TABLE evidence DETACH PARTITION evidence_before")
    op.execute("ALTER TABLE evidence_before DROP CONSTRAINT evidence_before_pkey")
    op.execute("ALTER TABLE evidence_before DROP COLUMN month")
    op.execute(f"INSERT INTO evidence_before ({_COLUMNS}) SELECT {_COLUMNS} FROM evidence")  # noqa: S608 - our own names
    op.execute("DROP TABLE evidence")
    op.execute("ALTER TABLE evidence_before RENAME TO evidence")
    op.execute("ALTER TABLE evidence ADD CONSTRAINT evidence_pkey PRIMARY KEY (refid, digest)")
