"""Trials of jobs that failed or were cancelled are stopped with them, as the ledger does by itself from here on."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# As ``search/states.py`` words it in this revision: a retry of the job knows by it what to go on with.
_STOP = """
UPDATE trials SET
    state = 'stopped',
    reason = 'stopped with its job while ' || state || (
        SELECT CASE WHEN jobs.state = 'cancelled' THEN ': that was cancelled' ELSE ': that failed' END
            || COALESCE(' (' || NULLIF(jobs.reason, '') || ')', '')
        FROM jobs WHERE jobs.id = trials.job_id)
WHERE state IN ('costing', 'training', 'paused')
    AND job_id IN (SELECT id FROM jobs WHERE state IN ('failed', 'cancelled'))
"""
_GO_BACK = """
UPDATE trials SET state = '{state}', reason = NULL
WHERE state = 'stopped' AND reason LIKE 'stopped with its job while {state}:%'
"""


def upgrade() -> None:
    """Stops them."""
    op.execute(_STOP)


def downgrade() -> None:
    """Puts them where they were: the retry of older versions goes on from there."""
    for state in ("costing", "training", "paused"):
        op.execute(_GO_BACK.format(state=state))
