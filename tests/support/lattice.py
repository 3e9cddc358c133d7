"""A made-up catalogue in which each network has the same sizes, and accuracies for it."""

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Budget, Size
from stillhouse.search.job import JobSpec, TrialRecord
from stillhouse.search.sampler import Sampler
from stillhouse.search.space import Space

OBJECTIVES = ("macs", "image_bytes")
SIDES = (32, 48, 64, 96, 128, 192)


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


def told(found, value, *, step=1):
    """Every so many candidates, done, with accuracies from ``value``."""
    return [
        TrialRecord("j", i, c, "done", found.cost(c), accuracy=value(c)) for i, c in enumerate(found.feasible[::step])
    ]
