"""Searches at the size of the product's own space, on accuracies that are made up.

``python bench/surfaces.py --json``. The table of ``bench/search_replay.py`` is real, but holds 71 candidates of six
networks; a job that names none has some 900 of the whole catalogue. Nobody has trained those, so here a formula says
how accurate each is; the first of three is the one that the surrogate of ``search/surrogate.py`` assumes:

- ``as assumed``: rises with side, MACs and pretrained weights, with an offset for each network;
- ``saturating``: rises by an exponential that levels off sooner for some networks than for others, and each network
  suits large or small grids;
- ``a grid of its own``: each network is best at a grid of its own, and worse on both sides of it; each likes one stem.

The seconds are those of the rule of ``search/effort.py``; one worker, budget 75 M MACs, the summary of the table's data
set. A seed draws the networks' traits and the validation accuracies (binomial, 500 pictures).

Figures: share of the hypervolume of all candidates that fit, after so many trials and at the end, and seconds to 80 and
90 % of it; median over seeds. This tells searches apart where the surrogate is right and where it is wrong, not how
soon a real search is done.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from _table import Table
from search_replay import TABLE, WIDE, Simulated
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.controller import Controller
from stillhouse.search.domain import Budget, Candidate, Json, StagePlan
from stillhouse.search.effort import Effort
from stillhouse.search.pareto import front, hypervolume
from stillhouse.search.plan import ingest_plan
from stillhouse.search.sampler import LEAST_TOLD
from stillhouse.search.space import Space
from stillhouse.service.db.memory import MemoryLedger
from stillhouse.service.worker import catalogue

BUDGET = Budget(max_macs=75_000_000)
VAL, TRAIN = 500, 502
"""Pictures."""
AT = (12, 24)
"""Trials after which the hypervolume is given."""

Traits = tuple[float, float, float]
"""Of a network: its offset, how it takes to large grids, how soon it levels off."""


def as_assumed(space: Space, candidate: Candidate, traits: Traits) -> float:
    macs = math.log2((space.cost(candidate).macs or 1) / 50e6)
    pretrained = candidate.arch in space.catalogue.pretrained
    return 0.5 + 0.08 * _octaves(candidate.image_size.pixels, 64) + 0.03 * macs + 0.15 * pretrained + traits[0]


def saturating(space: Space, candidate: Candidate, traits: Traits) -> float:
    offset, large, soon = traits
    grid, macs = _octaves(candidate.network_size.pixels, 96), math.log2((space.cost(candidate).macs or 1) / 50e6)
    rise = 1 - math.exp(-soon * (1.2 + 0.35 * _octaves(candidate.image_size.pixels, 64) + 0.12 * macs))
    known = 0.75 + 0.25 * (candidate.arch in space.catalogue.pretrained)
    return 0.25 + 0.6 * rise * known + offset + 2 * large * grid - 0.05 * max(0.0, grid - 1) ** 2


def grid_of_its_own(space: Space, candidate: Candidate, traits: Traits) -> float:
    offset, large, _ = traits
    grid, side = _octaves(candidate.network_size.pixels, 96), _octaves(candidate.image_size.pixels, 64)
    stem = 0.1 if zlib.crc32(f"{candidate.arch}|{candidate.stem}".encode()) % 3 == 0 else -0.05
    pretrained = candidate.arch in space.catalogue.pretrained
    return 0.55 + 2 * offset + 0.1 * pretrained - 0.25 * (grid - 16 * large - 0.3) ** 2 + 0.03 * side + stem


SURFACES: dict[str, Callable[[Space, Candidate, Traits], float]] = {
    "as assumed": as_assumed,
    "saturating": saturating,
    "a grid of its own": grid_of_its_own,
}
SEARCHES: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto without TPE": {"least": math.inf},
    "auto, TPE from the tenth": {"least": 10},
    "tpe": {"sampler": "tpe"},
    "random": {"sampler": "random"},
}


class Surface(Simulated):
    """An engine whose stages take the rule's seconds and tell what the formula says."""

    effort: Effort
    told: dict[Candidate, int]

    def widest(self) -> int:
        return 1

    def seconds(self, plan: StagePlan, slots: int) -> float:
        assert slots == 1
        return self.effort.seconds(plan)


def search(data: dict[str, Any], surface: str, seed: int, trials: int, sampler: str) -> dict[str, float]:
    """One search; its figures."""
    ledger, table = MemoryLedger(), Table(data, json.loads(WIDE.read_text()), seed)
    summary = {**data["summary"], "splits": data["pictures"]}
    ledger.publish_catalogue(data["catalogue"])
    dataset = ledger.add_dataset("made up", ingest_plan("made-up.zip", "made up", False, {}))
    free: dict[str, Any] = {"archs": (), "image_sizes": (), "precisions": ("fp32",), "qualities": (), "eta": 1}
    spec = replace(table.spec, dataset=dataset.id, budget=BUDGET, seed=seed, trials=trials, sampler=sampler, **free)
    job, engine, table.total = ledger.add_job(spec), Surface(ledger, table, 1), VAL
    engine.effort = Effort(Catalogue.from_json(data["catalogue"]), TRAIN, len(data["summary"]["classes"]))
    controller = Controller(ledger, engine, lease_s=1e9, max_attempts=1, clock=lambda: engine.now)
    space = Space(Catalogue.from_json(data["catalogue"]), summary, spec)
    accuracy = made_up(space, surface, seed)
    rng = np.random.default_rng(seed)
    table.told.update(
        {c: (int(rng.binomial(VAL, value)),) * table.spec.epochs.student for c, value in accuracy.items()}
    )
    done: list[tuple[float, Candidate]] = []
    while ledger.job(job.id).state in ("queued", "running"):
        controller.step()
        if engine.capacity() == 0:
            done += [(engine.now, candidate) for candidate in engine.advance()]
    return figures(space, accuracy, done)


def made_up(space: Space, surface: str, seed: int) -> dict[Candidate, float]:
    """Accuracy of every candidate."""
    rng, traits = np.random.default_rng(1000 + seed), dict[str, Traits]()
    found = {}
    for candidate in space.candidates:
        if candidate.arch not in traits:
            traits[candidate.arch] = rng.normal(0, 0.06), rng.normal(0, 0.03), rng.uniform(0.6, 1.4)
        value = SURFACES[surface](space, candidate, traits[candidate.arch]) + rng.normal(0, 0.02)
        found[candidate] = min(0.98, max(1 / space.classes, value))
    return found


def figures(space: Space, accuracy: dict[Candidate, float], done: list[tuple[float, Candidate]]) -> dict[str, float]:
    """Hypervolume, as a share of that of all that fit, in the course of a search."""
    costs = np.log2([[space.cost(c).macs or 1, space.cost(c).image_bytes or 1] for c in space.feasible])
    scaled = ((costs - costs.min(axis=0)) / np.ptp(costs, axis=0)).tolist()
    points = {c: (accuracy[c], *row) for c, row in zip(space.feasible, scaled, strict=True)}
    corner = (1 / space.classes, 1.05, 1.05)
    every, trained = list(points.values()), [points[candidate] for _, candidate in done]
    whole = hypervolume([every[place] for place in front(every)], corner)
    shares = [hypervolume(trained[: count + 1], corner) / whole for count in range(len(trained))]
    reached = {
        f"s_to_{share:.0%}": next((at for (at, _), found in zip(done, shares, strict=True) if found >= share), math.inf)
        for share in (0.8, 0.9)
    }
    return {**{f"after_{count}": shares[min(count, len(shares)) - 1] for count in AT}, "end": shares[-1], **reached}


def _octaves(pixels: int, side: int) -> float:
    """Of the side that a square of so many pixels has, above this side."""
    return math.log2(pixels / side**2) / 2


def _median(values: list[float]) -> float | None:
    """None where half of the searches never came there."""
    found = float(np.median(values))
    return round(found, 3 if found < 2 else 0) if math.isfinite(found) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--surface", choices=SURFACES, action="append", help="only these")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    options = parser.parse_args()
    data = json.loads(TABLE.read_text())
    data |= {"catalogue": {**catalogue(), "code": {}}, "pictures": {"train": TRAIN, "val": VAL, "test": VAL}}
    found: dict[str, Json] = {}
    for surface in options.surface or SURFACES:
        for name, how in SEARCHES.items():
            with patch("stillhouse.search.sampler.LEAST_TOLD", how.get("least", LEAST_TOLD)):
                sampler = how.get("sampler", "auto")
                runs = [search(data, surface, seed, options.trials, sampler) for seed in range(options.seeds)]
            found.setdefault(surface, {})[name] = {key: _median([run[key] for run in runs]) for key in runs[0]}
            if not options.json:
                print(surface, "|", name, found[surface][name], flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
