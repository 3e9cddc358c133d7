"""Devices that measure latency and memory of models by themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "devices",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("measure", sa.String(64), nullable=False),
        sa.Column("host", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_devices"),
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("devices")
