"""Seconds of stages are learned from those that were done."""

import math

import pytest

from instant import SUMMARY, catalogue
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Size, StageKind, StagePlan, StageResult
from stillhouse.search.effort import EXPORT_S, Effort, pictures_of
from stillhouse.search.job import StageRecord
from stillhouse.search.pace import NOISE_SD, OVERDUE, PRIOR_SD, Pace, Ratio, share_done
from stillhouse.search.plan import ingest_plan
from stillhouse.service.db.memory import MemoryLedger

INGEST = ingest_plan("d.zip", "d", False, {})
KNOWN = Catalogue.from_json(catalogue())
PACE = Pace(KNOWN, {INGEST.key: SUMMARY})


def student(
    name: str, epochs: int = 4, classes: int = 3, hints: dict[str, int] | None = None, **more: int
) -> StagePlan:
    spec = {"arch": "middle", "network_size": "32x32", "classes": classes, "epochs": epochs, "name": name, **more}
    return StagePlan(StageKind.STUDENT, spec, {"dataset": INGEST.key}, hints=hints or {})


EXPORT = StagePlan(StageKind.EXPORT, {"classes": 3})


def done(ledger: MemoryLedger, plan: StagePlan, seconds: float) -> None:
    ledger.ensure_stage(plan)
    attempt = ledger.open_attempt(plan.key, lease_s=9, threads=1)
    assert attempt is not None
    ledger.commit(attempt.id, attempt.token, StageResult(), seconds=seconds)


def ledger_of(*stages: tuple[StagePlan, float]) -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.publish_catalogue(catalogue())
    dataset = ledger.add_dataset("d", INGEST)
    ledger.end_dataset(dataset.id, "ready", summary=SUMMARY, reason=None, faults=())
    for plan, seconds in stages:
        done(ledger, plan, seconds)
    return ledger


def test_a_fresh_ledger_gives_the_rule() -> None:
    assert Pace.learned(MemoryLedger()) is None, "no worker has published its catalogue"
    pace = Pace.learned(ledger_of())
    assert pace is not None
    rule = Effort(KNOWN, 60, 3)
    assert pace.seconds(student("a")) == pytest.approx(rule.seconds(student("a")))
    assert pace.seconds(EXPORT) == EXPORT_S
    whole = pace.epoch(Candidate("middle", Size(32, 32), Size(32, 32)), INGEST.key, 3)
    assert 4 * whole == pytest.approx(rule.seconds(student("a")))


def test_a_used_ledger_gives_what_its_stages_took() -> None:
    rule = PACE.rule(student(""))
    stages = [(student(str(i)), 3 * rule) for i in range(20)]
    pace = Pace.learned(ledger_of(*stages, (EXPORT, EXPORT_S / 2)))
    assert pace is not None
    assert pace.seconds(student("new", epochs=8)) == pytest.approx(6 * rule, rel=0.02)
    assert EXPORT_S / 2 < pace.seconds(EXPORT) < 0.6 * EXPORT_S, "one stage does not tell all"
    teacher = StagePlan(StageKind.TEACHER, student("t").spec, {"dataset": INGEST.key})
    assert pace.seconds(teacher) == PACE.rule(teacher), "of other kinds nothing is known"


def test_the_posterior_is_that_of_a_normal_mean() -> None:
    ratio = Ratio.told([(10.0, 20.0), (10.0, 5.0), (10.0, 20.0)])
    precision = PRIOR_SD**-2 + 3 * NOISE_SD**-2
    assert ratio.mean == pytest.approx(math.log(2) / NOISE_SD**2 / precision)
    assert ratio.sd == pytest.approx(precision**-0.5)
    assert ratio.count == 3
    assert Ratio.told([]) == Ratio()
    assert Ratio.told([(1.0, 1.0), (99.0, 198.0)]).mean > 0.9 * math.log(2), "long stages make the total"


def test_stages_of_unknown_data_sets_teach_nothing() -> None:
    strange = StagePlan(StageKind.STUDENT, student("").spec, {"dataset": "gone"})
    pace = Pace.learned(ledger_of((strange, 1e6), (student("zero"), 0.0)))
    assert pace is not None
    assert pace.ratios[StageKind.STUDENT] == Ratio()


def test_fewer_classes_are_fewer_pictures() -> None:
    counted = {**SUMMARY, "histogram": {name: {"train": count} for name, count in (("a", 30), ("b", 10), ("c", 20))}}
    assert [pictures_of(counted, classes) for classes in (3, 2, 1)] == [60, 40, 30]
    assert (pictures_of(SUMMARY, 2), pictures_of({}, 3)) == (60, 0), "all where they were not counted"
    pace = Pace(KNOWN, {INGEST.key: counted})
    assert pace.rule(student("", classes=1)) < 0.6 * pace.rule(student("", classes=3))


@pytest.mark.parametrize(
    ("plan", "progress", "share"),
    [
        (student("a"), {"done": 60, "total": 240}, 0.25),
        (student("a"), {}, 0.0),
        (student("a", epochs=6, until=2), {"done": 60, "total": 360}, 0.5),
        (student("a", epochs=6, until=4, hints={"resumed": 2}), {"done": 180, "total": 360}, 0.5),
        (student("a"), {"done": 999, "total": 240}, 1.0),
    ],
)
def test_how_much_is_done(plan: StagePlan, progress: dict[str, int], share: float) -> None:
    assert share_done(StageRecord(plan, "running", progress=progress)) == pytest.approx(share)
    assert share_done(StageRecord(plan, "pending", progress=progress)) == 0.0


def test_what_is_left_of_a_stage() -> None:
    plan = student("a")
    expected = PACE.seconds(plan)
    assert PACE.left(StageRecord(plan, "done"), 5.0) == PACE.left(StageRecord(plan, "failed"), 5.0) == 0.0
    assert PACE.left(StageRecord(plan, "pending"), 0.0) == expected
    assert PACE.left(StageRecord(plan, "running"), expected / 4) == pytest.approx(0.75 * expected)
    assert PACE.left(StageRecord(plan, "running"), 9 * expected) == pytest.approx(OVERDUE * 9 * expected)
    slow = [PACE.left(StageRecord(plan, "running", progress={"done": d, "total": 100}), 3 * expected * d / 100)
            for d in (1, 50, 99)]  # fmt: skip
    own = [3 * expected * (100 - d) / 100 for d in (1, 50, 99)]
    assert [left / truth for left, truth in zip(slow, own, strict=True)] == pytest.approx(
        [1.02 / 3, 2 / 3, 2.98 / 3], abs=0.02
    ), "at first what is expected, at last what it shows"
