"""Seconds that stages take on these machines, learned from the ledger: the rule of ``effort.py`` made to fit them.

==========  ==========================================================================================
``rule``    seconds of a stage by ``effort.py``: pictures, MACs and epochs
``ratio``   measured seconds / rule; of each kind of stage log(ratio) is normal around a mean
``mean``    of log(ratio), with a normal prior around 0: a ledger without stages gives the rule
==========  ==========================================================================================

The posterior is that of a normal mean with known noise (Gelman et al. 2013, "Bayesian Data Analysis", 2.5); the last
``NEWEST`` stages of a kind count alike, so other machines are learned as their stages come in. Neglected: what differs
from stage to stage of a kind, such as the attempt's threads, its GPU, the method, and the seconds of an earlier attempt
that left a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Candidate, Json, StageKind, StagePlan
from stillhouse.search.effort import Effort, pictures_of
from stillhouse.search.job import StageRecord
from stillhouse.search.ports import Ledger

PRIOR_SD, NOISE_SD = 1.0, 0.3
"""Of the mean of log(ratio) before any stage was seen, and of one stage's around it (ours). Between ledgers the means
of a kind differed by 0.1 to 1.0; within one the stages did by 0.03 to 0.2, those of ``measure``, a second each, by 0.5.
"""
NEWEST = 200
"""Stages of a kind that are learned from."""
OVERDUE = 0.1
"""Share of its seconds so far that a stage is given which has had all that was expected and tells no progress."""
KINDS = tuple(kind for kind in StageKind if kind is not StageKind.INGEST)
"""A job begins when its data set has been read."""


@dataclass(frozen=True)
class Ratio:
    """What is known of log(measured seconds / rule) of one kind of stage.

    Attributes:
        mean, sd: Of the posterior of its mean.
        count: Stages that it was learned from.
    """

    mean: float = 0.0
    sd: float = PRIOR_SD
    count: int = 0

    @classmethod
    def told(cls, pairs: Sequence[tuple[float, float]]) -> Ratio:
        """From (seconds by the rule, measured seconds) of stages; longer ones weigh more, for they make the total."""
        precision = 1 / PRIOR_SD**2 + len(pairs) / NOISE_SD**2
        whole = sum(rule for rule, _ in pairs)
        logs = sum(rule * math.log(seconds / rule) for rule, seconds in pairs) / whole if pairs else 0.0
        return cls(logs * len(pairs) / NOISE_SD**2 / precision, precision**-0.5, len(pairs))


@dataclass(frozen=True)
class Pace:
    """The rule and the ratios.

    Attributes:
        catalogue: Knows MACs.
        summaries: Of data sets, by the key of their ingest stage.
        ratios: By kind; a kind that is missing goes by the rule.
    """

    catalogue: Catalogue
    summaries: Mapping[str, Mapping[str, Json]]
    ratios: Mapping[StageKind, Ratio] = field(default_factory=dict)
    _efforts: dict[tuple[str, int], Effort] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def learned(cls, ledger: Ledger) -> Pace | None:
        """From the ledger's stages; None before a worker has published its catalogue."""
        data = ledger.catalogue()
        if data is None:
            return None
        summaries = {dataset.stage_key: dataset.summary for dataset in ledger.datasets("ready")}
        rule = cls(Catalogue.from_json(data), summaries)
        seen = {kind: rule.pairs(ledger.stage_seconds(kind, limit=NEWEST)) for kind in KINDS}
        return cls(rule.catalogue, summaries, {kind: Ratio.told(pairs) for kind, pairs in seen.items()})

    def pairs(self, stages: Sequence[tuple[StagePlan, float]]) -> list[tuple[float, float]]:
        """(seconds by the rule, measured seconds) of stages whose data set is known."""
        pairs = [(self.rule(plan), seconds) for plan, seconds in stages]
        return [(rule, seconds) for rule, seconds in pairs if rule > 0 and seconds > 0]

    def rule(self, plan: StagePlan) -> float:
        """Seconds on one CPU thread by the rule; 0 of a stage that reads a data set which is not known."""
        return self.effort(plan.inputs.get("dataset", ""), int(plan.spec.get("classes", 2))).seconds(plan)

    def effort(self, dataset_key: str, classes: int) -> Effort:
        """The rule for a data set, by the key of its ingest stage; of one that is not known it has no pictures."""
        if (dataset_key, classes) not in self._efforts:
            pictures = pictures_of(self.summaries.get(dataset_key, {}), classes)
            self._efforts[dataset_key, classes] = Effort(self.catalogue, pictures, classes)
        return self._efforts[dataset_key, classes]

    def seconds(self, plan: StagePlan) -> float:
        """Seconds that a stage is expected to take."""
        return self.rule(plan) * self.factor(plan.kind)

    def epoch(self, candidate: Candidate, dataset_key: str, classes: int) -> float:
        """Seconds that an epoch of a student is expected to take."""
        one = self.effort(dataset_key, classes).epoch(candidate.arch, candidate.network_size, candidate.stem)
        return one * self.factor(StageKind.STUDENT)

    def factor(self, kind: StageKind) -> float:
        """Expected ratio of a kind: 1 where nothing was learned."""
        return math.exp(self.ratios.get(kind, Ratio()).mean)

    def left(self, stage: StageRecord, elapsed: float) -> float:
        """Seconds that a stage still needs: 0 once it has ended.

        What is expected of a running stage gives way to its own progress as that grows: after a share s of its pictures
        (1 - s) x expected + s x (elapsed / s) is taken for the whole.

        Args:
            stage: The stage.
            elapsed: Seconds that its attempts have run.
        """
        if stage.state in ("done", "failed"):
            return 0.0
        expected = self.seconds(stage.plan)
        if stage.state != "running":
            return expected
        share = share_done(stage)
        if share > 0:
            return (1 - share) * ((1 - share) * expected + elapsed)
        return max(expected - elapsed, OVERDUE * elapsed)


def share_done(stage: StageRecord) -> float:
    """How much of a running stage is done by its last report, from 0 to 1; what a lower rung did does not count."""
    done, total = stage.progress.get("done"), stage.progress.get("total")
    if stage.state != "running" or not done or not total:
        return 0.0
    epochs = stage.plan.spec.get("epochs", 1)
    begun = total * stage.plan.hints.get("resumed", 0) / epochs
    ended = total * stage.plan.spec.get("until", epochs) / epochs
    return float(min(1.0, max(0.0, (done - begun) / (ended - begun))))
