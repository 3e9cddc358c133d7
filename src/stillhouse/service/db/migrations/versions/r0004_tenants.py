"""API keys, the audit log, and the tenant that each data set and job belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util.exc import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables; what there was belongs to the tenant ``default``."""
    _make_keys()
    _make_audit()
    for table in ("datasets", "jobs"):
        op.add_column(table, sa.Column("tenant", sa.String(64), nullable=True))
        op.add_column(table, sa.Column("key_id", sa.String(32), nullable=True))
        op.execute(f"UPDATE {table} SET tenant = 'default'")  # noqa: S608 - the names stand above
    op.add_column("datasets", sa.Column("source_bytes", sa.BigInteger(), nullable=True))
    op.execute("UPDATE datasets SET source_bytes = 0")
    with op.batch_alter_table("datasets") as batch:
        batch.alter_column("tenant", existing_type=sa.String(64), nullable=False)
        batch.alter_column("source_bytes", existing_type=sa.BigInteger(), nullable=False)
        batch.drop_constraint("uq_datasets_stage_key", type_="unique")
        batch.create_unique_constraint("uq_datasets_tenant", ["tenant", "stage_key"])
        batch.create_index("ix_datasets_stage_key", ["stage_key"])
        batch.create_index("ix_datasets_key_id", ["key_id"])
    with op.batch_alter_table("jobs") as batch:
        batch.alter_column("tenant", existing_type=sa.String(64), nullable=False)
        batch.drop_constraint("uq_jobs_idempotency_key", type_="unique")
        batch.create_unique_constraint("uq_jobs_tenant", ["tenant", "idempotency_key"])
        batch.create_index("ix_jobs_key_id", ["key_id"])


def downgrade() -> None:
    """Drops keys, audit log and tenants.

    Raises:
        CommandError: There are several tenants: without the column each would see what the others have.
    """
    query = "SELECT tenant FROM datasets UNION SELECT tenant FROM jobs"
    tenants = sorted(op.get_bind().execute(sa.text(query)).scalars())
    if len(tenants) > 1:
        raise CommandError(f"tenants {', '.join(tenants)} would see one another's data; remove all but one first")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index("ix_jobs_key_id")
        batch.drop_constraint("uq_jobs_tenant", type_="unique")
        batch.create_unique_constraint("uq_jobs_idempotency_key", ["idempotency_key"])
        batch.drop_column("key_id")
        batch.drop_column("tenant")
    with op.batch_alter_table("datasets") as batch:
        batch.drop_index("ix_datasets_key_id")
        batch.drop_index("ix_datasets_stage_key")
        batch.drop_constraint("uq_datasets_tenant", type_="unique")
        batch.create_unique_constraint("uq_datasets_stage_key", ["stage_key"])
        batch.drop_column("source_bytes")
        batch.drop_column("key_id")
        batch.drop_column("tenant")
    op.drop_table("audit")
    op.drop_table("keys")


def _make_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )


def _make_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_tenant_id", "audit", ["tenant", "id"])
