"""Who recorded a payment, so that an error on COMMIT can be read again; when its personal data was taken out."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("payments", sa.Column("attempt", sa.Text(), nullable=True))
    op.add_column("payments", sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("payments", "pruned_at")
    op.drop_column("payments", "attempt")
