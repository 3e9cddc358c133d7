"""Trials that are stopped early: after how many epochs their accuracy was read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("trials", sa.Column("epochs", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("trials", "epochs")
