"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes all tables."""
    _make_work()
    _make_jobs()
    _make_outcomes()


def downgrade() -> None:
    """Drops all tables."""
    for table in ("catalogue", "events", "deployments", "trials", "jobs", "datasets", "attempts", "stages"):
        op.drop_table(table)


def _json(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def _make_work() -> None:
    op.create_table(
        "stages",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        _json("plan"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        _json("result", nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        _json("faults"),
        sa.Column("seconds", sa.Double(), nullable=True),
        _time("created_at"),
        sa.PrimaryKeyConstraint("key", name="pk_stages"),
    )
    op.create_index("ix_stages_state", "stages", ["state"])
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("stage_key", sa.String(64), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        _time("expires_at"),
        sa.Column("threads", sa.Integer(), nullable=False),
        _json("progress"),
        _time("opened_at"),
        _time("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["stage_key"], ["stages.key"], name="fk_attempts_stage_key_stages"),
    )
    op.create_index("ix_attempts_state", "attempts", ["state"])
    is_open = sa.text("state = 'open'")
    op.create_index(
        "uq_attempts_open", "attempts", ["stage_key"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )


def _make_jobs() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("stage_key", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        _json("faults"),
        _json("summary"),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
        sa.ForeignKeyConstraint(["stage_key"], ["stages.key"], name="fk_datasets_stage_key_stages"),
        sa.UniqueConstraint("stage_key", name="uq_datasets_stage_key"),
    )
    op.create_index("ix_datasets_state", "datasets", ["state"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("dataset_id", sa.String(32), nullable=False),
        _json("spec"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("finished_at", nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_jobs_dataset_id_datasets"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )
    op.create_index("ix_jobs_dataset_id", "jobs", ["dataset_id"])
    op.create_index("ix_jobs_state", "jobs", ["state"])


def _make_outcomes() -> None:
    op.create_table(
        "trials",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        _json("candidate"),
        sa.Column("state", sa.String(16), nullable=False),
        _json("cost"),
        _json("stages"),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_trials"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_trials_job_id_jobs"),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        _json("candidate"),
        _json("cost"),
        sa.Column("precision", sa.String(16), nullable=False),
        sa.Column("validation_correct", sa.Integer(), nullable=False),
        sa.Column("validation_total", sa.Integer(), nullable=False),
        sa.Column("test_correct", sa.Integer(), nullable=True),
        sa.Column("test_total", sa.Integer(), nullable=True),
        sa.Column("onnx_sha256", sa.String(64), nullable=False),
        _json("preprocess"),
        _json("details"),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_deployments"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_deployments_job_id_jobs"),
    )
    op.create_index("ix_deployments_job_id", "deployments", ["job_id"])
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(32), nullable=False),
        _time("at"),
        sa.Column("kind", sa.String(32), nullable=False),
        _json("data"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id_jobs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_job_id_id", "events", ["job_id", "id"])
    op.create_table(
        "catalogue",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        _json("data"),
        _time("published_at"),
        sa.PrimaryKeyConstraint("id", name="pk_catalogue"),
    )
