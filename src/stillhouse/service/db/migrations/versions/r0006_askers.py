"""Which job and trial asked first for an attempt: for logs and traces."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns."""
    op.add_column("attempts", sa.Column("job_id", sa.String(32), nullable=True))
    op.add_column("attempts", sa.Column("trial_number", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("attempts", "trial_number")
    op.drop_column("attempts", "job_id")
