import functools

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space

SIDES = (32, 48, 64, 96)
STATES = ("done", "done", "done", "infeasible", "failed", "training", "costing")


@functools.cache
def space(max_macs):
    cells = {f"{side}|{stem}": {"macs": side**2, "params": 9} for side in SIDES for stem in ("stock", "stride1")}
    archs = {
        f"net{i}": {
            "family": "cnn",
            "stems": ["stock", "stride1"],
            "macs_per_class": 8 * (i + 1) ** 2,
            "params_per_class": 8 * (i + 1) ** 2,
            "cells": cells,
        }
        for i in range(4)
    }
    data = {"names": list(archs), "archs": archs, "image_sizes": [str(side) for side in SIDES]}
    row = {"fit": "squash", "codec": "jpeg", "quality": 90}
    summary = {
        "classes": [str(i) for i in range(20)],
        "curve": [row | {"size": str(side), "mean_bytes": 200 + side**1.6} for side in SIDES],
    }
    return Space(Catalogue.from_json(data), summary, JobSpec("d", Budget(max_macs=max_macs), qualities=()))


@st.composite
def situations(draw):
    """A space, what was tried in it (some of it no longer feasible), a seed and a number."""
    found = space(draw(st.sampled_from((2_000, 6_000, 1_000_000))))
    tried = draw(st.lists(st.sampled_from(found.candidates), unique=True, max_size=40))
    history = []
    for number, candidate in enumerate(tried):
        state = draw(st.sampled_from(STATES))
        accuracy = draw(st.integers(0, 20)) / 20 if state == "done" else None
        history.append(TrialRecord("j", number, candidate, state, found.cost(candidate), accuracy=accuracy))
    return found, history, draw(st.integers(0, 2**31 - 1)), draw(st.integers(0, 500))


def propose(found, history, seed, number):
    return Sampler(found.feasible, found, seed, planned_trials=6).propose(history, number, ("macs", "image_bytes"))


@settings(deadline=None, max_examples=60)
@given(situations())
def test_a_proposal_is_feasible_and_new(situation):
    found, history, seed, number = situation
    proposal = propose(found, history, seed, number)
    left = set(found.feasible) - {trial.candidate for trial in history}
    assert (proposal in left) if left else (proposal is None)


@settings(deadline=None, max_examples=40)
@given(situations(), st.randoms(use_true_random=False))
def test_the_same_inputs_give_the_same_proposal(situation, random):
    found, history, seed, number = situation
    shuffled = random.sample(history, len(history))
    assert propose(found, history, seed, number) == propose(found, shuffled, seed, number)


@settings(deadline=None, max_examples=40)
@given(situations(), situations(), st.sampled_from(["tpe", "nsga2", "random", "brute_force"]))
def test_whatever_earlier_jobs_tried_a_proposal_is_feasible_and_new(situation, past, kind):
    found, history, seed, number = situation
    sampler = Sampler(found.feasible, found, seed, planned_trials=6, kind=kind, earlier=past[1])
    proposal = sampler.propose(history, number, ("macs", "image_bytes"))
    left = set(found.feasible) - {trial.candidate for trial in history}
    assert (proposal in left) if left else (proposal is None)
