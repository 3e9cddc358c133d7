"""Indexes that lists are read by, in pages."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the indexes."""
    op.create_index("ix_jobs_tenant_created_at_id", "jobs", ["tenant", "created_at", "id"])
    op.create_index("ix_trials_counted", "trials", ["job_id", "state", "accuracy"])
    op.create_index("ix_deployments_created_at_id", "deployments", ["created_at", "id"])
    op.create_index("ix_attempts_stage_key", "attempts", ["stage_key"])


def downgrade() -> None:
    """Drops the indexes."""
    op.drop_index("ix_attempts_stage_key", "attempts")
    op.drop_index("ix_deployments_created_at_id", "deployments")
    op.drop_index("ix_trials_counted", "trials")
    op.drop_index("ix_jobs_tenant_created_at_id", "jobs")
