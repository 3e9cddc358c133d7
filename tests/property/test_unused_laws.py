"""What is unused: nothing that can be reached from what exists, and everything else once it is old."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from instant import drive, honest, setup
from stillhouse.search.domain import StageKind, StagePlan
from stillhouse.search.job import Epochs
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.db.unused import Holders, StageLine, unused

KINDS = ("ingest", "teacher", "student", "export")


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[list[StageLine], Holders]:
    """Stages that read earlier ones, or ones that are gone; some are named, some belong to live jobs."""
    count = draw(st.integers(0, 14))
    lines = []
    for number in range(count):
        kind = "ingest" if number < 2 else draw(st.sampled_from(KINDS[1:]))
        earlier = st.sampled_from([str(each) for each in range(-1, number)]) if kind != "ingest" else st.nothing()
        reads = tuple(draw(st.lists(earlier, max_size=3, unique=True))) if kind != "ingest" else ()
        state = draw(st.sampled_from(("pending", "running", "done", "failed")))
        lines.append(StageLine(str(number), kind, state, float(draw(st.integers(0, 9))), reads))
    keys = st.sampled_from([str(number) for number in range(count)]) if count else st.nothing()
    named = draw(st.frozensets(keys, max_size=3)) if count else frozenset()
    live = draw(st.frozensets(st.sampled_from(["0", "1"][: min(count, 2)]))) if count else frozenset()
    shuffled = draw(st.permutations(lines))
    return list(shuffled), Holders((), named, live, frozenset(), frozenset())


def reached(lines: list[StageLine], start: set[str]) -> set[str]:
    """What can be come to from here, longhand: until nothing is added."""
    found = set(start)
    while more := {key for line in lines if line.key in found for key in line.reads} - found:
        found |= more
    return found


@given(ledgers(), st.integers(0, 10))
def test_nothing_that_is_reached_is_unused(made: tuple[list[StageLine], Holders], before: int) -> None:
    lines, holders = made
    gone = set(unused(lines, holders, before=before))
    running = {line.key for line in lines if line.state == "running"}
    young = {line.key for line in lines if line.used_at >= before}
    assert not gone & reached(lines, set(holders.stages) | set(holders.live) | running | young)
    for line in lines:
        if holders.live and line.key in gone:
            sources = reached(lines, {line.key}) & {each.key for each in lines if each.kind == "ingest"}
            assert sources, "what reads no pictures may be taken up by any live job"
            assert not sources & holders.live


@given(ledgers())
def test_nothing_else_stays(made: tuple[list[StageLine], Holders]) -> None:
    lines, holders = made
    idle = Holders(holders.mark, holders.stages, frozenset(), frozenset(), frozenset())
    running = {line.key for line in lines if line.state == "running"}
    kept = reached(lines, set(idle.stages) | running)
    assert set(unused(lines, idle, before=10)) == {line.key for line in lines} - kept


@given(ledgers(), st.integers(0, 10))
def test_what_stays_can_be_read_whole(made: tuple[list[StageLine], Holders], before: int) -> None:
    """No stage that stays loses an input; and once the rest is gone, nothing further is unused."""
    lines, holders = made
    gone = set(unused(lines, holders, before=before))
    left = [line for line in lines if line.key not in gone]
    assert not {key for line in left for key in line.reads} & gone
    assert unused(left, holders, before=before) == []


def forget(ledger: MemoryLedger) -> int:
    """Forgets all that is unused at this moment, however young."""
    holders, soon = ledger.holders(), time.time() + 60
    lines = ledger.stage_lines(limit=10_000)
    return len(ledger.forget_stages(unused(lines, holders, before=soon), mark=holders.mark, before=soon) or ())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=40, max_size=40), st.sampled_from((1, 3)))
def test_a_job_does_not_notice(when: list[bool], eta: int) -> None:
    """Whatever is forgotten before, during and after its steps, a job ends as if nothing had been."""
    fronts = []
    for forgets in ([False] * len(when), when):
        ledger, job, engine, controller = setup(honest, ablate="all", trials=2, epochs=Epochs(1, 1, 9), eta=eta)
        stray = StagePlan(StageKind.EXPORT, {"nobody's": True})
        ledger.ensure_stage(stray)
        for now in forgets:
            controller.step()
            if now:
                forget(ledger)
        assert drive(controller, ledger, job.id) == "done"
        assert len({plan.key for plan in engine.done}) == len(engine.done), "nothing runs twice"
        assert forget(ledger) >= (0 if any(forgets) else 1)
        models = ledger.deployments(job.id)
        fronts.append(sorted((item.candidate, item.variant, item.onnx_sha256, item.test) for item in models))
        named = [key for trial in ledger.trials(job.id) for key in trial.stages]
        assert ledger.stages(named).keys() == set(named)
    assert fronts[0] == fronts[1]
