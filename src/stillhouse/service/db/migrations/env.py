"""Alembic's entry: runs on the connection that ``stillhouse.service.db.migrate`` hands over."""

from __future__ import annotations

from alembic import context

from stillhouse.service.db.tables import Base

# Batch mode: SQLite changes a column by building the table anew.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
