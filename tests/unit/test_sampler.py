import dataclasses
import math
import time
import warnings

import optuna
import pytest

from lattice import OBJECTIVES, accuracy, sampler, space
from lattice import told as every
from speed import slowness
from stillhouse.search.domain import Budget, Candidate, Cost, Size
from stillhouse.search.job import TrialRecord
from stillhouse.search.sampler import LEAST_TOLD, Sampler, parents

ASKS = {"tpe": 16, "gp": 1, "nsga2": 40}
"""Samplers that learn, and how many proposals show it: GP takes seconds for each, NSGA-II leaves most to chance."""


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


def asked(found, kind, history, count=None, *, trials=24):
    """Proposals under so many seeds."""
    seeds = range(count or ASKS[kind])
    return [sampler(found, seed=n, kind=kind, trials=trials).propose(history, 200, OBJECTIVES) for n in seeds]


@pytest.mark.parametrize("kind", ASKS)
def test_opposite_histories_give_other_proposals(kind):
    found = space()
    good, bad = (every(found, lambda c, sign=sign: 0.5 + sign * accuracy(c) / 4, step=8) for sign in (1, -1))
    one, other = asked(found, kind, good), asked(found, kind, bad)
    assert sum(a != b for a, b in zip(one, other, strict=True)) > len(one) / 2
    assert sum(map(accuracy, one)) > sum(map(accuracy, other))


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("best", ["net1", "net4"])
def test_the_architecture_that_did_best_is_proposed_more_than_by_chance(kind, best):
    found = space()
    history = every(found, lambda c: 0.9 if c.arch == best else 0.2, step=3)
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
        for trial in every(found, lambda _: 0.5, step=3)
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
    done = every(found, accuracy, step=10)[:8]
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
    history = every(found, accuracy)[:count]
    for known, chance in ((history[:-1], True), (history, False)):
        bred, drawn = (asked(found, kind, known, 12, trials=trials) for kind in ("nsga2", "random"))
        assert (bred == drawn) == chance


def test_what_was_infeasible_is_no_parent():
    """With nothing but infeasible trials there is nobody to breed from."""
    found = space()
    history = [
        dataclasses.replace(trial, state="infeasible", accuracy=None) for trial in every(found, accuracy, step=4)
    ]
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
