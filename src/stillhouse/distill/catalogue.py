"""The curated catalogue of student networks, with exact costs of every cell.

``python -m stillhouse.distill.catalogue`` counts every (architecture, network size, stem) on the meta device and
writes ``search/catalogue.json``, which the planner reads without torch. A test re-counts a sample each run.

Costs are those of the network as deployed, branches merged; a cell holds those of the body, to which the planner adds
what each class costs. What each channel of the picture costs stands apart: a network that reads grey saves two. A
cell that does not build, train or export is left out, by the table ``search/catalogue_checks.json`` that
``python -m stillhouse.service.cell_check`` writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import timm
import torch

from stillhouse.distill import zoo
from stillhouse.search.domain import PRECISIONS, Json, Size
from stillhouse.search.errors import StageError

PATH = Path(__file__).parents[1] / "search" / "catalogue.json"
CHECKS = PATH.with_name("catalogue_checks.json")

ARCHS = (
    "convnext_atto",
    "convnext_femto",
    "convnext_zepto_rms",
    "convnextv2_atto",
    "deit_tiny_patch16_224",
    "edgenext_x_small",
    "edgenext_xx_small",
    "efficientvit_b0",
    "efficientvit_b1",
    "fastvit_t12",
    "fastvit_t8",
    "fbnetc_100",
    "ghostnet_050",
    "ghostnet_100",
    "lcnet_035",
    "lcnet_050",
    "lcnet_075",
    "lcnet_100",
    "mnasnet_100",
    "mnasnet_small",
    "mobilenetv2_035",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_large_075",
    "mobilenetv3_large_100",
    "mobilenetv3_small_050",
    "mobilenetv3_small_075",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_medium",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_conv_small_050",
    "mobilenetv4_hybrid_medium_075",
    "mobileone_s0",
    "mobileone_s1",
    "mobilevit_xs",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "pvt_v2_b0",
    "regnety_002",
    "repghostnet_050",
    "repghostnet_100",
    "repvgg_a0",
    "repvgg_a1",
    "repvit_m0_9",
    "repvit_m1_0",
    "resnet10t",
    "resnet14t",
    "resnet18",
    "semnasnet_075",
    "shvit_s1",
    "starnet_s050",
    "starnet_s1",
    "tf_efficientnet_lite0",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
    "tiny_vit_5m_224",
    "tinynet_c",
    "tinynet_d",
    "tinynet_e",
    "vit_small_patch16_224",
    "vit_tiny_patch16_224",
)
IMAGE_SIZES = (32, 48, 64, 96, 128)
NETWORK_SIZES = (
    *(Size(side, side) for side in (32, 48, 64, 96, 112, 128, 160, 192, 224)),
    *(Size(3 * side, 4 * side) for side in (16, 24, 32, 48, 56)),  # cameras of 3:4
    *(Size(9 * side, 16 * side) for side in (4, 6, 8, 14)),  # and of 9:16
)
"""What networks compute at, height by width."""
STAGE_KINDS = ("ingest", "probe", "teacher", "targets", "assistant", "student")

_PROBE_CLASSES = 2
"""Classes of the networks that are counted; what they cost is taken off again."""

_PER_CHANNEL = ("macs_per_channel", "params_per_channel")
_NEEDED = ("builds", "trains", "exports")
"""Checks without which a cell is no candidate."""

_STEP = re.compile(rf"(?:^|; )({'|'.join((*_NEEDED, *PRECISIONS[1:]))}): ")

TIMM_ERRORS = (StageError, RuntimeError, ValueError, AssertionError, TypeError)
"""timm's networks have no error type of their own."""


def probe(arch: str) -> zoo.Network:
    """An architecture on the meta device, to be asked what it is.

    Raises:
        UnknownNameError, StageError: As ``zoo.build``.
    """
    with torch.device("meta"):
        return zoo.build(arch, classes=_PROBE_CLASSES, image_size=Size(224, 224))


def stems_of(network: zoo.Network) -> list[str]:
    """Stems that its architecture can be asked for with; a check says whether they work."""
    stride = zoo.input_convolution(network).stride
    return [stem for stem in zoo.STEMS[network.family] if stem != "stride1" or stride == (2, 2)]


def describe(arch: str, without: Collection[str] = ()) -> dict[str, Json]:
    """One architecture's entry: family, stems, costs of a class, and each cell's costs without classes.

    What a channel costs is left out of an architecture that cannot be built for grey pictures, or then costs otherwise.

    Args:
        arch: A timm name.
        without: Stems, and cells ``size|stem``, to leave out.

    Raises:
        UnknownNameError, StageError: As ``zoo.build``; or it computes at none of the sizes.
    """
    stock = probe(arch)
    stems = [stem for stem in stems_of(stock) if stem not in without]
    found: dict[tuple[Size, str], dict[str, int]] = {}
    for stem, size in itertools.product(stems, NETWORK_SIZES):
        costs = None if f"{size}|{stem}" in without else _counted(arch, size, stem)
        if costs is not None:
            found[size, stem] = costs
    if not found:
        raise StageError(f"{arch} computes at none of the sizes {', '.join(map(str, NETWORK_SIZES))}")
    (size, stem), costs = next(iter(found.items()))
    more = zoo.macs_params(arch, classes=_PROBE_CLASSES + 1, network_size=size, stem=stem)
    macs, params = more[0] - costs["macs"], more[1] - costs["params"]
    by_stem = {stem: (size, stem) for size, stem in found}
    reads_grey = all(_reads_grey(arch, *cell, found[cell]) for cell in by_stem.values())
    return {
        "family": stock.family,
        "stems": [stem for stem in stems if any(stem == known for _, known in found)],
        "macs_per_class": macs,
        "params_per_class": params,
        "cells": {
            f"{size}|{stem}": {
                "macs": cost["macs"] - _PROBE_CLASSES * macs,
                "params": cost["params"] - _PROBE_CLASSES * params,
                **({name: cost[name] for name in _PER_CHANNEL} if reads_grey else {}),
            }
            for (size, stem), cost in found.items()
        },
    }


def excluded(checks: Mapping[str, Json]) -> dict[str, dict[str, str]]:
    """Architecture -> place -> why it is no candidate there: by the table of checks it does not build, train or export.

    A place is a stem, where all its cells fail, or a cell ``size|stem``.
    """
    found: dict[str, dict[str, str]] = {}
    for (arch, stem), cells in _failures(checks).items():
        whys = {
            f"{size}|{stem}": "; ".join(f"{step}: {why}" for step, why in reasons.items() if step in _NEEDED)
            for size, reasons in cells.items()
            if not reasons.keys().isdisjoint(_NEEDED)
        }
        if whys:
            whole = {stem: next(iter(whys.values()))}
            found.setdefault(arch, {}).update(whole if len(whys) == len(cells) else whys)
    return found


def lacking(checks: Mapping[str, Json]) -> dict[str, dict[str, dict[str, str]]]:
    """Architecture -> place -> precision -> why no file of it works; as ``search.catalogue.lacking`` reads it.

    What fails at each size of a stem stands under the stem, and under a cell what fails there where that differs.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for (arch, stem), cells in _failures(checks).items():
        fails = {
            f"{size}|{stem}": {step: why for step, why in reasons.items() if step in PRECISIONS[1:]}
            for size, reasons in cells.items()
            if reasons.keys().isdisjoint(_NEEDED)
        }
        if any(fails.values()):
            first, *others = fails.values()
            always = {step: why for step, why in first.items() if all(step in each for each in others)}
            apart = {cell: each for cell, each in fails.items() if each.keys() != always.keys()}
            found.setdefault(arch, {}).update({stem: always, **apart} if always else apart)
    return found


def generate(archs: Iterable[str] = ARCHS) -> dict[str, Json]:
    """The catalogue as ``search.catalogue`` reads it; the same in every process with the same libraries."""
    failed = excluded(json.loads(CHECKS.read_text(encoding="utf-8")))
    entries = {}
    for arch in sorted(archs):
        without = failed.get(arch, {})
        if set(stems_of(probe(arch))) - without.keys():
            entries[arch] = describe(arch, without)
    return {
        "made_with": {name: version(name).partition("+")[0] for name in ("timm", "torch")},
        "names": sorted(timm.list_models()),
        "image_sizes": [f"{side}x{side}" for side in IMAGE_SIZES],
        "archs": entries,
    }


def to_text(catalogue: Mapping[str, Json]) -> str:
    """JSON with a line a cell and a line for the names of a family, so that a difference can be read."""
    groups = [list(group) for _, group in itertools.groupby(catalogue["names"], lambda name: name.partition("_")[0])]
    names = ",\n".join("  " + ", ".join(json.dumps(name) for name in group) for group in groups)
    entries = []
    for arch, entry in catalogue["archs"].items():
        facts = json.dumps({name: value for name, value in entry.items() if name != "cells"}).removesuffix("}")
        cells = ",\n".join(f"   {json.dumps(name)}: {json.dumps(cell)}" for name, cell in entry["cells"].items())
        entries.append(f'  {json.dumps(arch)}: {facts}, "cells": {{\n{cells}\n  }}}}')
    parts = (
        f' "made_with": {json.dumps(catalogue["made_with"])}',
        f' "names": [\n{names}\n ]',
        f' "image_sizes": {json.dumps(catalogue["image_sizes"])}',
        ' "archs": {\n' + ",\n".join(entries) + "\n }",
    )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def code_digests() -> dict[str, str]:
    """Digest by stage kind of the sources and libraries that decide its result.

    Ingest reads pictures and labels only, so a change to the trainer leaves its results valid. Every other kind
    takes in the whole trainer: a stage whose key is done must never stand for other code.
    """
    root = Path(__file__).parent
    later = ("reader.py", "store.py", "views.py")
    readers = [path for path in sorted((root / "data").glob("*.py")) if path.name not in later]
    trainers = [path for path in sorted(root.rglob("*.py")) if path.name not in ("catalogue.py", "textures.py")]
    ingest = _digest(root, readers, ("numpy", "pillow"))
    training = _digest(root, trainers, ("numpy", "pillow", "timm", "torch"))
    return {kind: ingest if kind == "ingest" else training for kind in STAGE_KINDS}


# ---------------------------------------------------------------------------------------- helpers


def _failures(checks: Mapping[str, Json]) -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """(architecture, stem) -> size -> step -> why it failed; ``reason`` holds them as ``step: why; step: why``."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for name, verdict in checks["cells"].items():
        arch, stem, size = name.split("|")
        parts = _STEP.split(verdict.get("reason", ""))[1:]
        found.setdefault((arch, stem), {})[size] = dict(zip(parts[::2], parts[1::2], strict=True))
    return found


def _counted(arch: str, size: Size, stem: str) -> dict[str, int] | None:
    """A cell's costs with the classes that are counted; None when the network cannot compute at this size."""
    try:
        network = zoo.deployed(arch, classes=_PROBE_CLASSES, network_size=size, stem=stem)
        costs = {"macs": zoo.count_macs(network, size), "params": sum(p.numel() for p in network.parameters())}
        return costs | dict(zip(_PER_CHANNEL, zoo.channel_costs(network), strict=True))
    except TIMM_ERRORS:
        return None


def _reads_grey(arch: str, size: Size, stem: str, costs: Mapping[str, int]) -> bool:
    """Whether the network can be built for grey pictures, and then costs two channels less."""
    try:
        found = zoo.macs_params(arch, classes=_PROBE_CLASSES, network_size=size, stem=stem, colour="grey")
    except TIMM_ERRORS:
        return False
    return found == tuple(costs[name] - 2 * costs[f"{name}_per_channel"] for name in ("macs", "params"))


def _digest(root: Path, paths: Iterable[Path], libraries: Iterable[str]) -> str:
    # Without what follows a plus: torch 2.14.1+cpu and +cu128 are built from the same sources.
    digest = hashlib.sha256("".join(f"{name} {version(name).split('+')[0]}\n" for name in libraries).encode())
    for path in paths:
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()


if __name__ == "__main__":
    PATH.write_text(to_text(generate()), encoding="utf-8")
