"""How many of the engine's slots an attempt takes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; until now each attempt took one."""
    op.add_column("attempts", sa.Column("slots", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("attempts", "slots")
