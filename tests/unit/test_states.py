"""The drawn moves are the moves."""

import itertools

import pytest

from stillhouse.search import states
from stillhouse.search.states import ATTEMPT, DATASET, JOB, STAGE, TRIAL, Moves, check_move

ALL = {"data set": DATASET, "job": JOB, "trial": TRIAL, "stage": STAGE, "attempt": ATTEMPT}


@pytest.mark.parametrize("moves", ALL.values(), ids=ALL)
def test_every_move_leads_to_a_state_and_every_state_is_drawn(moves: Moves) -> None:
    assert set().union(*moves.values()) <= set(moves)
    assert all(state in (states.__doc__ or "") for state in moves)


@pytest.mark.parametrize("moves", ALL.values(), ids=ALL)
def test_a_move_that_is_not_drawn_is_refused(moves: Moves) -> None:
    for state, to in itertools.product(moves, repeat=2):
        if to in moves[state]:
            check_move(moves, (state,), to)
        else:
            with pytest.raises(ValueError, match=f"but not to {to}"):
                check_move(moves, (state,), to)
    with pytest.raises(ValueError, match="must be one of"):
        check_move(moves, (next(iter(moves)),), "elsewhere")


def test_what_has_ended_well_ends() -> None:
    assert not (DATASET["ready"] | TRIAL["done"] | TRIAL["infeasible"] | STAGE["done"] | ATTEMPT["done"])
