"""Stages wait before they are tried again: not before which time (Unix seconds)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("stages", sa.Column("not_before", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("stages", "not_before")
