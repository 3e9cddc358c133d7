r"""The states of everything the ledger keeps, and the only moves between them.

::

    data set   pending --> ready
                  |  ^
                  v  |  asked for again
                failed

    job        queued --> running --> done
                 ^  |        |  \---> failed
                 |  +--------+------> cancelled          a user's word
                 +--- retry --- done, failed, cancelled  (done: while comparisons are missing)

    trial      costing --> training --> done
                 |  |       |  ^  \---> failed           retry: back to costing
                 |  |       v  |
                 |  |      paused                        waits at a rung
                 |  |       |
                 |  +-------+---------> stopped          the search is over, it promises too little, or its job
                 |                                       failed or was cancelled (retry: back to paused or costing)
                 +--------------------> infeasible       measured beyond the budget

    stage      pending --> running --> done
                  ^          |  \----> failed            a fault that a retry would meet again
                  +-- lost --+                           the attempt is gone, its work is not at fault
                  +-- retry -- failed

    attempt    open --> done, failed, lost

*Lost* is not *failed*: an attempt whose process, node or lease is gone says nothing about its stage, which goes back to
pending and is tried again after a pause; only a stage that loses ``max_attempts`` in a row fails. Every move is one
compare-and-set in the ledger; what is not drawn here is a fault of ours, and refused.

A trial that is costed or trained may be moved to where it is, when its stages or its epochs are told.

A job takes its trials with it when it fails, is cancelled or is tried again (``with_job``): in a job that has ended no
trial is at work, and none moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

Moves = Mapping[str, frozenset[str]]
"""State -> the states that may follow it."""

DATASET: Moves = {
    "pending": frozenset({"ready", "failed"}),
    "ready": frozenset(),
    "failed": frozenset({"pending"}),
}
JOB: Moves = {
    "queued": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"done", "failed", "cancelled"}),
    "done": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}
TRIAL: Moves = {
    "costing": frozenset({"costing", "training", "infeasible", "failed", "stopped"}),
    "training": frozenset({"training", "paused", "done", "failed", "stopped"}),
    "paused": frozenset({"training", "failed", "stopped"}),
    "done": frozenset(),
    "failed": frozenset({"costing"}),
    "infeasible": frozenset(),
    "stopped": frozenset({"costing", "paused"}),
}
OPEN_TRIALS = ("costing", "training", "paused")
"""Trials whose search goes on."""
UNSETTLED = tuple(state for state, following in TRIAL.items() if following)
"""Trials that something may still happen to, if only with their job."""
LIVE = ("queued", "running")
"""Jobs that something will still happen to."""
CUT_SHORT = ("failed", "cancelled")
"""Jobs that ended before their search did: nothing of theirs is stored from then on."""
STAGE: Moves = {
    "pending": frozenset({"running"}),
    "running": frozenset({"done", "failed", "pending"}),
    "done": frozenset(),
    "failed": frozenset({"pending"}),
}
ATTEMPT: Moves = {
    "open": frozenset({"done", "failed", "lost"}),
    "done": frozenset(),
    "failed": frozenset(),
    "lost": frozenset(),
}


def check_move(moves: Moves, expected: Iterable[str], to: str) -> None:
    """Makes sure that a move is drawn above.

    Args:
        moves: Of what is moved.
        expected: The states that it may be in.
        to: The state that it shall be in.

    Raises:
        ValueError: There is no such state, or no such move.
    """
    for state in expected:
        if state not in moves or to not in moves:
            raise ValueError(f"a state must be one of {', '.join(moves)}, but got {state!r} -> {to!r}")
        if to not in moves[state]:
            may = ", ".join(sorted(moves[state])) or "nothing"
            raise ValueError(f"from {state} it goes on to {may}, but not to {to}")


class TrialMove(NamedTuple):
    """Where a trial goes with its job, and the reason that it has from then on."""

    to: str
    reason: str | None


def with_job(state: str, reason: str | None, job: str, why: str | None) -> TrialMove | None:
    """What becomes of a trial when its job comes to a state; None when nothing does.

    What is stopped with its job is told by its reason, so that a retry goes on with that and no other.

    Args:
        state: The trial's.
        reason: The trial's.
        job: The state that its job is in from now on.
        why: The reason of that.
    """
    if job == "queued":  # tried again
        with_it = state == "stopped" and (reason or "").startswith(_WITH_JOB)
        waited = with_it and (reason or "").startswith(_at("paused"))
        return TrialMove("paused" if waited else "costing", None) if with_it or state == "failed" else None
    if job not in CUT_SHORT or state not in OPEN_TRIALS:
        return None
    ended = "that was cancelled" if job == "cancelled" else "that failed"
    return TrialMove("stopped", f"{_at(state)}: {ended}" + (f" ({why})" if why else ""))


_WITH_JOB = "stopped with its job while "


def _at(state: str) -> str:
    return f"{_WITH_JOB}{state}"
