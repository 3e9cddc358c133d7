"""A new job is told what earlier jobs on its data set found out: which trials those are, and what they change."""

from dataclasses import fields, replace

import numpy as np
import optuna
import pytest

from instant import SUMMARY, catalogue, drive, honest, setup
from stillhouse.search import warm
from stillhouse.search.advance import Desk
from stillhouse.search.choice import Chooser
from stillhouse.search.domain import Budget, Candidate, Fit, Size
from stillhouse.search.job import DatasetRecord, Epochs, JobRecord, JobSpec, TrialRecord
from stillhouse.search.warm import Earlier, earlier, recipe

MANY = {**SUMMARY, "splits": {"train": 100_000, "val": 12, "test": 18}}
DATASET = DatasetRecord("d", "d", "key", "ready", summary=MANY)
SPEC = JobSpec("d", teacher="huge", epochs=Epochs(2, 2, 9), eta=3)
RECIPES = {
    "method": "logits",
    "knobs": {"alpha": 0.5},
    "teacher": "large",
    "teacher_checkpoint": "0" * 64,
    "teacher_size": 160,
    "epochs": Epochs(1, 1, 2),
    "views": 7,
    "ladder": (64,),
    "mixup": 0.5,
    "ema": 0.9,
    "schedule": "cosine",
    "codec_share": 0.1,
    "fit": next(fit for fit in Fit if fit is not Fit.SQUASH),
    "colour": "grey",
    "codec": "webp",
    "quality": 50,
    "qualities": (),
    "precisions": ("fp32",),
    "objectives": ("macs",),  # no picture is sent any more
}
SAME = {
    "budget": Budget(max_macs=9_000_000),
    "trials": 40,
    "seed": 7,
    "sampler": "tpe",
    "eta": 2,
    "max_wall_s": 5.0,
    "max_device_s": 5.0,
    "min_gain": 0.1,
    "objectives": ("params", "image_bytes"),
    "archs": ("small",),
    "image_sizes": ("32x32",),
    "ablate": "all",
    "latency_threads": 2,
    "feature_cache_bytes": 5,
    "compile": True,
}


# ------------------------------------------------------------------------------------ which trials


def finished(**changes):
    ledger, job, _, controller = setup(honest, **changes)
    assert drive(controller, ledger, job.id) == "done"
    return ledger, job, controller


def test_a_new_job_is_told_the_trials_that_were_done_before():
    ledger, first, _ = finished()
    (found,) = earlier(ledger, ledger.add_job(replace(first.spec, seed=5)))
    assert found == Earlier(tuple(ledger.trials(first.id)), same_recipe=True)
    assert len(found.trials) == 3 and all(trial.accuracy is not None for trial in found.trials)


def test_the_first_job_is_told_nothing_and_none_is_told_its_own_or_later_trials():
    ledger, first, controller = finished()
    assert earlier(ledger, ledger.job(first.id)) == ()
    second = ledger.add_job(replace(first.spec, seed=5, trials=6))
    told = earlier(ledger, second)
    drive(controller, ledger, second.id)
    assert len(ledger.trials(second.id)) == 6
    assert earlier(ledger, ledger.job(second.id)) == told


def test_what_happens_later_to_an_earlier_job_changes_nothing():
    """A job is cancelled with a trial done, then retried to its end while the next one runs."""
    ledger, first, _, controller = setup(honest, trials=3)
    while not any(trial.state == "done" for trial in ledger.trials(first.id)):
        controller.step()
    ledger.move_job(first.id, expect=("running",), to="cancelled")
    second = ledger.add_job(replace(first.spec, seed=5))
    told = earlier(ledger, second)
    assert [len(each.trials) for each in told] == [1]
    ledger.move_job(first.id, expect=("cancelled",), to="queued")
    assert drive(controller, ledger, first.id) == "done"
    assert len(ledger.trials(first.id)) == 3
    assert earlier(ledger, ledger.job(second.id)) == told


@pytest.mark.parametrize("change", [{"classes": 2}, {"task": "another"}])
def test_another_question_is_told_nothing(change):
    ledger, first, _ = finished()
    assert earlier(ledger, ledger.add_job(replace(first.spec, **change))) == ()


def test_all_classes_by_number_are_all_classes():
    ledger, first, _ = finished()
    assert len(earlier(ledger, ledger.add_job(replace(first.spec, classes=3)))) == 1


def test_another_data_set_is_told_nothing():
    ledger, first, _ = finished()
    other = ledger.add_dataset("e", replace(warm_plan(ledger, first), spec={"digest": "e"}))
    assert earlier(ledger, ledger.add_job(replace(first.spec, dataset=other.id))) == ()


def warm_plan(ledger, job):
    key = ledger.dataset(job.spec.dataset).stage_key
    return ledger.stages([key])[key].plan


def test_every_field_of_a_job_is_considered():
    assert {item.name for item in fields(JobSpec)} == {*RECIPES, *SAME, "dataset", "task", "classes"}


@pytest.mark.parametrize("name", RECIPES)
def test_what_changes_accuracy_is_another_recipe(name):
    assert getattr(SPEC, name) != RECIPES[name]
    assert recipe(replace(SPEC, **{name: RECIPES[name]})) != recipe(SPEC)


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_accuracy_is_the_same_recipe(name):
    assert getattr(SPEC, name) != SAME[name]
    assert recipe(replace(SPEC, **{name: SAME[name]})) == recipe(SPEC)


def test_an_earlier_job_of_another_recipe_is_marked():
    ledger, first, _ = finished()
    (found,) = earlier(ledger, ledger.add_job(replace(first.spec, views=7)))
    assert not found.same_recipe and len(found.trials) == 3


def test_the_newest_jobs_come_first_and_the_work_is_bounded(monkeypatch):
    ledger, first, controller = finished()
    second = ledger.add_job(replace(first.spec, views=7))
    drive(controller, ledger, second.id)
    third = ledger.add_job(replace(first.spec, seed=9))
    assert [found.trials[0].job_id for found in earlier(ledger, third)] == [second.id, first.id]
    monkeypatch.setattr(warm, "MOST_TRIALS", 4)
    assert [len(found.trials) for found in earlier(ledger, third)] == [3, 1]
    monkeypatch.setattr(warm, "MOST_JOBS", 1)
    assert [found.trials[0].job_id for found in earlier(ledger, third)] == [second.id]
    drive(controller, ledger, third.id)
    drive(controller, ledger, ledger.add_job(replace(first.spec, seed=10)).id)
    assert [found.trials[0].job_id for found in earlier(ledger, third)] == [second.id]


# ------------------------------------------------------------------------------------ what they change


def chooser(*past, **changes):
    desk = Desk(JobRecord("j", replace(SPEC, **changes), "running"), DATASET, catalogue())
    return Chooser(desk.space, desk.planner.spec, desk.planner.levels, desk.chooser._prices, past)


def choose(found, trials=()):
    return found.next(trials, (), new=True, left_out=(), paid=())


def past(found, accuracy, *, same_recipe=True):
    """An earlier job that tried every candidate of ``found``."""
    trials = [
        TrialRecord("old", i, c, "done", found._space.cost(c), accuracy=accuracy(c), epochs=9)
        for i, c in enumerate(found._space.feasible)
    ]
    return Earlier(tuple(trials), same_recipe)


def foretold(found):
    """Mean accuracy foretold before the job has a trial, by architecture."""
    surrogate = found._surrogate
    mean, _ = surrogate.predict(surrogate.fit(surrogate.read(())[1]), np.arange(len(found._space.feasible)))
    archs = np.array([candidate.arch for candidate in found._space.feasible])
    return {arch: mean[archs == arch].mean() for arch in sorted(set(archs.tolist()))}


def by_arch(**accuracy):
    return lambda candidate: accuracy[candidate.arch]


def test_the_model_knows_before_the_first_trial_what_the_same_recipe_gave():
    told = by_arch(small=0.9, middle=0.5, large=0.1)
    found = foretold(chooser(past(chooser(), told)))
    assert found == pytest.approx({"small": 0.9, "middle": 0.5, "large": 0.1}, abs=0.05)
    assert foretold(chooser())["small"] < foretold(chooser())["large"]


def test_another_recipe_tells_the_order_rather_than_the_level():
    high = lambda candidate: 0.3 + by_arch(small=0.5, middle=0.45, large=0.4)(candidate)  # noqa: E731
    plain = foretold(chooser())
    same = foretold(chooser(past(chooser(), high)))
    other = foretold(chooser(past(chooser(), high, same_recipe=False)))
    assert other["small"] - other["large"] == pytest.approx(same["small"] - same["large"], abs=0.01)
    rise = [np.mean([each[arch] - plain[arch] for arch in plain]) for each in (same, other)]
    assert rise[1] < 0.9 * rise[0]


def test_each_job_of_another_recipe_has_an_offset_of_its_own():
    plain = chooser()
    low, high = (past(plain, lambda _, level=level: level, same_recipe=False) for level in (0.3, 0.7))
    found = chooser(low, high)
    model = found._surrogate.fit(found._surrogate.read(())[1])
    assert model.mean[-1] - model.mean[-2] == pytest.approx(0.4, abs=0.05)


def test_earlier_trials_are_no_part_of_the_front_and_not_tried():
    found = chooser(past(chooser(), lambda _: 0.9))
    trials = []
    for number in range(len(found._space.feasible)):
        move = choose(found, trials)
        if number == 0:
            best = max(found._space.feasible, key=found._space.promise)
            assert move.candidate == best, "as if nothing had been tried"
        cost = found._space.cost(move.candidate)
        trials.append(TrialRecord("j", number, move.candidate, "done", cost, accuracy=0.9, epochs=9))
    assert {trial.candidate for trial in trials} == set(found._space.feasible)


def test_candidates_that_this_job_may_not_try_teach_too():
    wide = chooser()
    told = by_arch(small=0.9, middle=0.1, large=0.1)
    narrow = {"budget": Budget(max_macs=3_500_000), "archs": ("small", "middle")}
    found = chooser(past(wide, told), **narrow)
    assert len(found._surrogate._past[2]) == len(wide._space.feasible) > len(found._space.feasible)
    assert foretold(found)["small"] > foretold(found)["middle"] + 0.5


def test_what_the_catalogue_lacks_and_other_knobs_are_skipped():
    candidates = [
        Candidate("gone", Size(32, 32), Size(32, 32)),
        Candidate("small", Size(32, 32), Size(77, 77)),
        Candidate("small", Size(32, 32), Size(32, 32), knobs=(("alpha", 0.5),)),
    ]
    trials = tuple(TrialRecord("old", i, c, "done", accuracy=0.9, epochs=9) for i, c in enumerate(candidates))
    assert foretold(chooser(Earlier(trials, True), Earlier(trials, False))) == foretold(chooser())


def test_the_same_ledger_gives_the_same_move():
    told = by_arch(small=0.9, middle=0.5, large=0.1)
    moves = [choose(chooser(past(chooser(), told), past(chooser(), told, same_recipe=False))) for _ in range(2)]
    assert moves[0] == moves[1]


@pytest.mark.parametrize("sampler", ["auto", "tpe"])
def test_optuna_is_told_the_same_recipe_alone(monkeypatch, sampler):
    jobs = past(chooser(), lambda _: 0.9), past(chooser(), lambda _: 0.1, same_recipe=False)
    found, told = chooser(*jobs, sampler=sampler), []
    real = optuna.trial.create_trial
    monkeypatch.setattr(optuna.trial, "create_trial", lambda **given: told.append(given["values"]) or real(**given))
    begun = [TrialRecord("j", 0, found._space.feasible[0], "training")]
    assert choose(found, begun).candidate in found._space.feasible
    assert {values[0] for values in told if values is not None} == {0.9}
