import dataclasses
import math
import time
import warnings

import numpy as np
import optuna
import pytest

from speed import slowness
from stillhouse.search import sampler as sampling
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Candidate, Cost, Size
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import LEAST_TOLD, MOST_TOLD, Sampler, parents
from stillhouse.search.space import Space

OBJECTIVES = ("macs", "image_bytes")
SIDES = (32, 48, 64, 96, 128, 192)
ASKS = {"tpe": 16, "gp": 1, "nsga2": 40}
"""Samplers that learn, and how many proposals show it: GP takes seconds for each, NSGA-II leaves most to chance."""


def catalogue(archs=6, pretrained=()):
    entries = {
        f"net{i}": {
            "family": "cnn",
            "stems": ["stock", "stride1"],
            "macs_per_class": 10,
            "params_per_class": 11,
            "cells": {
                f"{side}x{side}|{stem}": {"macs": (i + 1) * side**2 * (4 if stem == "stride1" else 1), "params": 1000}
                for side in SIDES
                for stem in ("stock", "stride1")
            },
        }
        for i in range(archs)
    }
    sizes = [str(side) for side in SIDES]
    weights = {"package": list(pretrained)}
    return Catalogue.from_json({"names": list(entries), "archs": entries, "image_sizes": sizes, "weights": weights})


def space(budget=None, **options):
    curve = [
        {"fit": "squash", "codec": "jpeg", "quality": 90, "size": str(side), "mean_bytes": 300 + side**1.7}
        for side in SIDES
    ]
    spec = JobSpec("d", budget or Budget(max_macs=60_000, max_image_size=Size(64, 64)), qualities=())
    return Space(catalogue(**options), {"classes": ["a", "b"], "curve": curve}, spec)


def sampler(found, *, seed=0, trials=8, candidates=None, kind="tpe"):
    chosen = found.feasible if candidates is None else candidates
    return Sampler(chosen, found, seed, planned_trials=trials, kind=kind)


def accuracy(candidate):
    """What training might give: the grid counts, then the picture, then the architecture."""
    grid = candidate.network_size.height * (1 if candidate.stem == "stock" else 2)
    return 1 - 8 / grid - 4 / candidate.image_size.height - 0.02 * int(candidate.arch.removeprefix("net"))


def run(found, count, *, seed=0, trials=8, state="done"):
    history = []
    for number in range(count):
        candidate = sampler(found, seed=seed, trials=trials).propose(history, number, OBJECTIVES)
        if candidate is None:
            break
        value = accuracy(candidate) if state == "done" else None
        history.append(TrialRecord("j", number, candidate, state, found.cost(candidate), accuracy=value))
    return history


def test_first_the_likely_best_then_the_far_end():
    found = space()
    first, second = [trial.candidate for trial in run(found, 2)]
    best = max(found.cost(c).macs for c in found.feasible if c.image_size == Size(64, 64))
    assert first.image_size == Size(64, 64) and found.cost(first).macs == best
    assert first.network_size != first.image_size or first.stem != "stock"
    assert second.image_size == Size(32, 32) and found.cost(second).macs < best / 4


@pytest.mark.parametrize("state", ["done", "training"])
def test_the_spread_shares_architectures_and_keeps_a_sensible_grid(state):
    tried = [trial.candidate for trial in run(space(), LEAST_TOLD, trials=4, state=state)]
    assert len({candidate.arch for candidate in tried}) == 2
    assert all(c.network_size.height * (2 if c.stem == "stride1" else 1) >= 96 for c in tried)
    assert len({c.image_size for c in tried}) >= 2 and len({c.network_size for c in tried}) >= 2


def test_the_spread_prefers_networks_that_start_from_trained_weights():
    tried = {trial.candidate.arch for trial in run(space(pretrained=("net1", "net3")), LEAST_TOLD)}
    assert tried == {"net1", "net3"}


def test_senseless_cells_are_tried_when_there_is_nothing_else():
    found = space(Budget(max_image_size=Size(32, 32), max_macs=2000))
    assert {c.network_size for c in found.feasible} == {Size(32, 32)}
    assert len(run(found, 50)) == len(found.feasible) > 0


def test_every_candidate_is_tried_once_then_none():
    found = space(Budget(max_macs=12_000), archs=2)
    history = run(found, 1000)
    assert sorted(t.candidate for t in history) == sorted(found.feasible)
    assert len(history) < 1000


def test_only_the_candidates_given_are_proposed():
    found = space()
    allowed = found.feasible[::5]
    history = run(found, 12)
    for number in range(12, 16):
        assert sampler(found, candidates=allowed).propose(history, number, OBJECTIVES) in allowed
    assert sampler(found, candidates=()).propose(history, 16, OBJECTIVES) is None


def test_tpe_finds_better_ones_than_the_spread_did():
    found = space(archs=12)
    told = run(found, 40)

    def mean(trials):
        return sum(t.accuracy for t in trials) / len(trials)

    assert mean(told[-15:]) > mean([TrialRecord("j", 0, c, "done", accuracy=accuracy(c)) for c in found.feasible])


def test_the_greatest_ratio_is_what_tpe_proposes_when_it_draws_all(monkeypatch):
    """Optuna's own sampler, with so many draws that every candidate is among them, is the reference."""
    found = space(Budget(max_image_size=Size(64, 64)), archs=4)
    whole = [c for c in found.feasible if c.network_size == c.image_size]
    assert len(whole) == 4 * 3 * 2, "every combination of parts is a candidate"
    history = [
        TrialRecord("j", i, c, "done" if i % 7 else "training", found.cost(c), accuracy=accuracy(c))
        for i, c in enumerate(whole[::2] + whole[1::4])
    ]
    ratios = sampler(found, candidates=whole).ratios(history, OBJECTIVES, {})
    real = optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **given: real(n_ei_candidates=20_000, **given))
    for seed in range(3):
        tpe = sampler(found, candidates=whole, seed=seed, kind="tpe")
        assert tpe._ask(tpe._rows(history, OBJECTIVES), 0, OBJECTIVES) == whole[int(np.argmax(ratios))]


def test_ratios_favour_what_is_like_the_good_ones():
    found = space(archs=8)
    history = told(found, lambda c: 0.9 if c.arch == "net3" else 0.2, step=3)[:40]
    ratios = sampler(found).ratios(history, OBJECTIVES, {})
    of = {arch: ratios[[c.arch == arch for c in found.feasible]].mean() for arch in {c.arch for c in found.feasible}}
    assert max(of, key=of.get) == "net3"


def test_there_are_no_ratios_while_few_are_told_nor_of_a_single_candidate():
    found = space()
    history = told(found, accuracy)[:LEAST_TOLD]
    unknown = [dataclasses.replace(trial, state="training") for trial in history]
    for known, some in ((history, True), (history[1:], False), (unknown, False), ([], False)):
        ratios = sampler(found).ratios(known, OBJECTIVES, {})
        assert (len(ratios), bool(ratios.any())) == (len(found.feasible), some)
    one = found.feasible[:1]
    alike = [dataclasses.replace(trial, candidate=one[0]) for trial in history]
    assert sampler(found, candidates=one).ratios(alike, OBJECTIVES, {}).tolist() == [0.0]


def test_ratios_take_what_is_foretold_for_what_is_known():
    found = space()
    history = told(found, accuracy, step=2)[:20]
    risen = {3: 0.99}
    as_if = [dataclasses.replace(t, accuracy=risen.get(t.number, t.accuracy)) for t in history]
    ratios = sampler(found).ratios(history, OBJECTIVES, risen)
    assert (ratios == sampler(found).ratios(as_if, OBJECTIVES, {})).all()
    assert (ratios != sampler(found).ratios(history, OBJECTIVES, {})).any()


def test_ratios_do_not_depend_on_the_order_of_trials_nor_on_the_seed():
    found = space()
    history = told(found, accuracy, step=2)[:30]
    ratios = [sampler(found, seed=s).ratios(h, OBJECTIVES, {}) for s, h in enumerate((history, history[::-1]))]
    assert (ratios[0] == ratios[1]).all()


def test_an_optuna_that_does_not_rate_is_named(monkeypatch):
    found = space()
    monkeypatch.setattr(
        sampling._Rating, "_compute_acquisition_func", optuna.samplers.TPESampler._compute_acquisition_func
    )
    with pytest.raises(RuntimeError, match=r"rates no candidates.*install optuna 5\.0"):
        sampler(found).ratios(told(found, accuracy)[:20], OBJECTIVES, {})


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
    sampler(found).ratios(history, OBJECTIVES, {})
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
    assert not sampler(found).ratios(history, OBJECTIVES, {}).any()


def test_infeasible_failed_and_running_trials_are_told():
    found = space()
    history = run(found, 12)
    states = ["infeasible", "failed", "training", "costing"]
    mixed = [dataclasses.replace(t, state=states[i - 8], accuracy=None) if i >= 8 else t for i, t in enumerate(history)]
    proposal = sampler(found).propose(mixed, 12, OBJECTIVES)
    assert proposal in found.feasible and proposal not in {t.candidate for t in mixed}


def test_how_each_state_is_told_to_optuna(monkeypatch):
    told = []
    real = optuna.trial.create_trial

    def spy(**arguments):
        told.append((arguments["state"].name, arguments["values"], arguments["constraints"]))
        return real(**arguments)

    monkeypatch.setattr(optuna.trial, "create_trial", spy)
    found = space()
    history = run(found, LEAST_TOLD)
    states = ("infeasible", "failed", "training", "costing")
    spare = [candidate for candidate in found.feasible if candidate not in {trial.candidate for trial in history}]
    history += [TrialRecord("j", 10 + i, spare[i], state, Cost(macs=1)) for i, state in enumerate(states)]
    sampler(found).propose(history, 20, OBJECTIVES)
    cost = history[0].cost
    values = [history[0].accuracy, math.log2(cost.macs), math.log2(cost.image_bytes)]
    assert told[0] == ("COMPLETE", values, {"feasible": -1.0})
    middle = pytest.approx(sum(figures[0] for _, figures, _ in told[:LEAST_TOLD]) / LEAST_TOLD)
    image_bytes = pytest.approx(sum(figures[2] for _, figures, _ in told[:LEAST_TOLD]) / LEAST_TOLD)
    assert told[LEAST_TOLD:] == [
        ("COMPLETE", [middle, 0.0, image_bytes], {"feasible": 1.0}),
        ("COMPLETE", [middle, 0.0, image_bytes], {"feasible": 1.0}),
        ("RUNNING", None, None),
        ("RUNNING", None, None),
    ]


def told(found, value, *, step=1):
    """Every so many candidates, done, with accuracies from ``value``."""
    return [
        TrialRecord("j", i, c, "done", found.cost(c), accuracy=value(c)) for i, c in enumerate(found.feasible[::step])
    ]


def asked(found, kind, history, count=None, *, trials=24):
    """Proposals under so many seeds."""
    seeds = range(count or ASKS[kind])
    return [sampler(found, seed=n, kind=kind, trials=trials).propose(history, 200, OBJECTIVES) for n in seeds]


@pytest.mark.parametrize("kind", ASKS)
def test_opposite_histories_give_other_proposals(kind):
    found = space()
    good, bad = (told(found, lambda c, sign=sign: 0.5 + sign * accuracy(c) / 4, step=8) for sign in (1, -1))
    one, other = asked(found, kind, good), asked(found, kind, bad)
    assert sum(a != b for a, b in zip(one, other, strict=True)) > len(one) / 2
    assert sum(map(accuracy, one)) > sum(map(accuracy, other))


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("best", ["net1", "net4"])
def test_the_architecture_that_did_best_is_proposed_more_than_by_chance(kind, best):
    found = space()
    history = told(found, lambda c: 0.9 if c.arch == best else 0.2, step=3)
    shares = [
        sum(candidate.arch == best for candidate in proposals) / len(proposals)
        for proposals in (asked(found, kind, history), asked(found, "random", history, 40))
    ]
    assert shares[0] > 1.5 * shares[1]


@pytest.mark.parametrize("kind", ASKS)
def test_what_was_infeasible_is_kept_away_from_for_its_constraint_alone(kind, monkeypatch):
    """The networks that were ruled out are the cheapest; all that were not are equally accurate."""
    found, barred = space(archs=8), {"net0", "net1", "net2"}
    history = [
        dataclasses.replace(trial, state="infeasible", accuracy=None) if trial.candidate.arch in barred else trial
        for trial in told(found, lambda _: 0.5, step=3)
    ]

    def share():
        proposals = asked(found, kind, history)
        return sum(candidate.arch in barred for candidate in proposals) / len(proposals)

    kept = share()
    real = optuna.trial.create_trial
    monkeypatch.setattr(optuna.trial, "create_trial", lambda **given: real(**{**given, "constraints": None}))
    assert kept < share() / 2
    assert kept <= 0.25


def test_gp_takes_what_is_at_work_and_what_was_ruled_out_into_account():
    found = space()
    done = told(found, accuracy, step=10)[:8]
    spare = [candidate for candidate in found.feasible if candidate not in {trial.candidate for trial in done}]
    history = [
        *done,
        TrialRecord("j", 8, spare[0], "training", found.cost(spare[0])),
        TrialRecord("j", 9, spare[-1], "infeasible", found.cost(spare[-1])),
    ]
    proposal = sampler(found, kind="gp").propose(history, 10, OBJECTIVES)
    assert proposal in found.feasible and proposal not in {trial.candidate for trial in history}
    assert proposal == sampler(found, kind="gp").propose(history, 10, OBJECTIVES)
    middle = sum(map(accuracy, found.feasible)) / len(found.feasible)
    assert accuracy(proposal) > middle


def test_the_spread_comes_first_for_gp_too(monkeypatch):
    monkeypatch.setattr(optuna, "create_study", None)
    found = space()
    for told in (0, 2, LEAST_TOLD - 1):
        history = run(found, told)
        proposal = sampler(found, kind="gp").propose(history, told, OBJECTIVES)
        assert proposal == sampler(found).propose(history, told, OBJECTIVES)


@pytest.mark.parametrize(("trials", "count"), [(1, 4), (8, 4), (16, 4), (40, 10), (80, 20), (1000, 20)])
def test_nsga2_breeds_from_a_quarter_of_the_job(trials, count):
    found = space()
    assert parents(trials) == count
    history = told(found, accuracy)[:count]
    for known, chance in ((history[:-1], True), (history, False)):
        bred, drawn = (asked(found, kind, known, 12, trials=trials) for kind in ("nsga2", "random"))
        assert (bred == drawn) == chance


def test_what_was_infeasible_is_no_parent():
    """With nothing but infeasible trials there is nobody to breed from."""
    found = space()
    history = [dataclasses.replace(trial, state="infeasible", accuracy=None) for trial in told(found, accuracy, step=4)]
    assert asked(found, "nsga2", history, 12) == asked(found, "random", history, 12)


def test_trials_of_an_older_catalogue_do_no_harm():
    found = space()
    gone = Candidate("net_gone", Size(40, 40), Size(90, 90), "half_patch")
    old = [TrialRecord("j", 50 + i, gone, "done", Cost(macs=7, image_bytes=9.0), accuracy=0.5) for i in range(3)]
    for told in (2, 12):
        assert sampler(found).propose([*run(found, told), *old], 60, OBJECTIVES) in found.feasible


def test_a_done_trial_without_the_objective_waits_with_the_running_ones():
    found = space()
    history = run(found, 12)
    assert sampler(found).propose(history, 12, ("latency_ms",)) in found.feasible


def test_two_hundred_trials_are_rebuilt_and_asked_quickly_and_quietly(capfd):
    found = space(Budget(max_image_size=Size(128, 128)), archs=20)
    history = [
        TrialRecord("j", i, c, "done", found.cost(c), accuracy=accuracy(c) + math.sin(i) / 50)
        for i, c in enumerate(found.feasible[:400:2])
    ]
    assert len(history) == 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started = time.process_time()
        proposal = sampler(found).propose(history, 200, OBJECTIVES)
        seconds = (time.process_time() - started) / slowness()
    assert proposal is not None
    assert seconds < 0.3, f"{seconds * 1000:.0f} ms of CPU"
    assert capfd.readouterr() == ("", "")


def test_the_sampler_takes_over_once_earlier_trials_are_told(monkeypatch):
    found = space()
    earlier = [dataclasses.replace(trial, job_id="old") for trial in run(found, LEAST_TOLD)]
    unknown = [dataclasses.replace(trial, accuracy=None) for trial in earlier]
    asked = []
    real = Sampler._ask
    monkeypatch.setattr(
        Sampler, "_ask", lambda self, rows, *rest: asked.append([row.trial for row in rows]) or real(self, rows, *rest)
    )
    for told in (earlier[1:], unknown):
        assert warm(found, told).propose([], 0, OBJECTIVES) == sampler(found).propose([], 0, OBJECTIVES)
    assert asked == []
    assert warm(found, [*earlier, *unknown]).propose([], 0, OBJECTIVES) in found.feasible
    assert asked == [earlier]


def test_what_an_earlier_job_tried_may_be_tried_again():
    found = space(Budget(max_macs=12_000), archs=2)
    earlier = [
        TrialRecord("old", i, c, "done", found.cost(c), accuracy=accuracy(c)) for i, c in enumerate(found.feasible)
    ]
    assert warm(found, earlier).propose([], 0, OBJECTIVES) in found.feasible


def warm(found, earlier):
    return Sampler(found.feasible, found, 0, planned_trials=8, earlier=earlier)


def test_brute_force_tries_every_candidate_once_fewest_macs_first(monkeypatch):
    monkeypatch.setattr(optuna, "create_study", None)
    found = space(archs=2)
    history = []
    for number in range(len(found.feasible) - 1):
        candidate = brute(found).propose(history, number, OBJECTIVES, left_out=found.feasible[:1])
        history.append(TrialRecord("j", number, candidate, "done", found.cost(candidate), accuracy=0.5))
    tried = [trial.candidate for trial in history]
    assert sorted(tried) == sorted(found.feasible[1:])
    macs = [found.cost(candidate).macs for candidate in tried]
    assert macs == sorted(macs)
    assert brute(found).propose(history, number, OBJECTIVES, left_out=found.feasible[:1]) is None


def brute(found):
    return Sampler(found.feasible, found, 0, planned_trials=1, kind="brute_force")
