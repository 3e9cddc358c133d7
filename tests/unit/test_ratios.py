"""What TPE thinks of given candidates, and how many trials Optuna is told of."""

import dataclasses

import numpy as np
import optuna
import pytest

from lattice import OBJECTIVES, accuracy, sampler, space, told
from stillhouse.search import sampler as sampling
from stillhouse.search.domain import Budget, Cost, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.sampler import LEAST_TOLD, MOST_TOLD


def rated(found, history, foretold=None, *, candidates=None, **given):
    """Ratios of all candidates."""
    every = np.arange(len(found.feasible if candidates is None else candidates))
    return sampler(found, candidates=candidates, **given).ratios(history, OBJECTIVES, foretold or {}, every)


def test_the_greatest_ratio_is_what_tpe_proposes_when_it_draws_all(monkeypatch):
    """Optuna's own sampler, with so many draws that every candidate is among them, is the reference."""
    found = space(Budget(max_image_size=Size(64, 64)), archs=4)
    whole = [c for c in found.feasible if c.network_size == c.image_size]
    assert len(whole) == 4 * 3 * 2, "every combination of parts is a candidate"
    history = [
        TrialRecord("j", i, c, "done" if i % 7 else "training", found.cost(c), accuracy=accuracy(c))
        for i, c in enumerate(whole[::2] + whole[1::4])
    ]
    ratios = rated(found, history, candidates=whole)
    real = optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **given: real(n_ei_candidates=20_000, **given))
    for seed in range(3):
        tpe = sampler(found, candidates=whole, seed=seed, kind="tpe")
        assert tpe._ask(tpe._rows(history, OBJECTIVES)[0], 0, OBJECTIVES) == whole[int(np.argmax(ratios))]


def test_each_candidate_has_the_same_ratio_whatever_others_are_asked_about():
    found = space()
    history = told(found, accuracy, step=2)[:20]
    some = np.array([7, 2, 3])
    assert sampler(found).ratios(history, OBJECTIVES, {}, some) == pytest.approx(rated(found, history)[some])


def test_ratios_favour_what_is_like_the_good_ones():
    found = space(archs=8)
    history = told(found, lambda c: 0.9 if c.arch == "net3" else 0.2, step=3)[:40]
    ratios = rated(found, history)
    of = {arch: ratios[[c.arch == arch for c in found.feasible]].mean() for arch in {c.arch for c in found.feasible}}
    assert max(of, key=of.get) == "net3"


def test_there_are_no_ratios_while_few_are_told_nor_of_a_single_candidate():
    found = space()
    history = told(found, accuracy)[:LEAST_TOLD]
    unknown = [dataclasses.replace(trial, state="training") for trial in history]
    for known, some in ((history, True), (history[1:], False), (unknown, False), ([], False)):
        ratios = rated(found, known)
        assert (len(ratios), bool(ratios.any())) == (len(found.feasible), some)
    one = found.feasible[:1]
    alike = [dataclasses.replace(trial, candidate=one[0]) for trial in history]
    assert rated(found, alike, candidates=one).tolist() == [0.0]


def test_ratios_take_what_is_foretold_for_what_is_known():
    found = space()
    history = told(found, accuracy, step=2)[:20]
    risen = {3: 0.99}
    as_if = [dataclasses.replace(t, accuracy=risen.get(t.number, t.accuracy)) for t in history]
    ratios = rated(found, history, foretold=risen)
    assert (ratios == rated(found, as_if)).all()
    assert (ratios != rated(found, history)).any()


def test_ratios_do_not_depend_on_the_order_of_trials_nor_on_the_seed():
    found = space()
    history = told(found, accuracy, step=2)[:30]
    ratios = [rated(found, h, seed=s) for s, h in enumerate((history, history[::-1]))]
    assert (ratios[0] == ratios[1]).all()


def test_an_optuna_that_does_not_rate_is_named(monkeypatch):
    found = space()
    monkeypatch.setattr(
        sampling._Rating, "_compute_acquisition_func", optuna.samplers.TPESampler._compute_acquisition_func
    )
    with pytest.raises(RuntimeError, match=r"rates no candidates.*install optuna 5\.0"):
        rated(found, told(found, accuracy)[:20])


def test_of_many_trials_optuna_is_told_the_front_and_the_newest(monkeypatch):
    shown = []
    real = optuna.trial.create_trial
    monkeypatch.setattr(optuna.trial, "create_trial", lambda **given: shown.append(given) or real(**given))
    found = space(Budget(max_image_size=Size(128, 128)), archs=8)
    history = [
        TrialRecord("j", i, c, "training" if i % 10 == 9 else "done", Cost(macs=5000, image_bytes=5e3), accuracy=0.1)
        for i, c in enumerate(found.feasible[:200])
    ]
    for i in range(5):  # the front is old
        cost = Cost(macs=1000 - 100 * i, image_bytes=1e3 + i)
        history[i] = dataclasses.replace(history[i], accuracy=0.9, cost=cost)
    rated(found, history)
    assert len(shown) == MOST_TOLD
    accuracies = [given["values"][0] for given in shown if given["values"] is not None]
    assert sum(value > 0.8 for value in accuracies) == 5
    states = [given["state"].name for given in shown]
    assert states.count("RUNNING") == MOST_TOLD // 4
    newest = [t for t in history if t.state == "training"][-MOST_TOLD // 4 :]
    at_work = [given["params"]["arch"] for given in shown if given["values"] is None]
    assert at_work == [t.candidate.arch for t in newest]


@pytest.mark.parametrize("kind", ["random", "nsga2"])
def test_many_trials_of_which_nothing_is_known_can_be_told(kind):
    found = space(Budget(max_image_size=Size(128, 128)), archs=8)
    gone = found.feasible[: 2 * MOST_TOLD]
    history = [TrialRecord("j", i, c, "infeasible", found.cost(c)) for i, c in enumerate(gone)]
    assert sampler(found, kind=kind).propose(history, len(gone), OBJECTIVES) in found.feasible[len(gone) :]
    assert not rated(found, history).any()
