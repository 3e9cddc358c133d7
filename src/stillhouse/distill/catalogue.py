"""The curated catalogue of student networks, with exact costs of every cell.

``python -m stillhouse.distill.catalogue`` counts every (architecture, network size, stem) on the meta device and
writes ``search/catalogue.json``, which the planner reads without torch. A test re-counts a sample each run.

Every architecture listed here builds, takes a training step and exports to ONNX in each of its stems; a cell
holds the body's costs, to which the planner adds those of the classifier.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from stillhouse.distill import zoo
from stillhouse.search.domain import Json, Size

PATH = Path(__file__).parents[1] / "search" / "catalogue.json"

ARCHS = (
    "convnext_atto",
    "deit_tiny_patch16_224",
    "lcnet_035",
    "lcnet_050",
    "lcnet_075",
    "lcnet_100",
    "mnasnet_small",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv3_small_075",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_conv_small_050",
    "resnet10t",
    "resnet14t",
    "resnet18",
    "tf_efficientnet_lite0",
    "tinynet_d",
    "tinynet_e",
    "vit_tiny_patch16_224",
)
IMAGE_SIZES = (32, 48, 64, 96, 128)
NETWORK_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224)
STAGE_KINDS = ("ingest", "probe", "teacher", "targets", "assistant", "student")

_PROBE_CLASSES = 2
"""Classes of the networks that are counted; what they cost is taken off again."""


def describe(arch: str) -> dict[str, Json]:
    """One architecture's entry: family, stems, classifier, and each cell's costs without the classifier."""
    with torch.device("meta"):
        probe = zoo.build(arch, classes=_PROBE_CLASSES, image_size=Size(224, 224))
    stems = _stems(probe)
    backbone: Any = probe.backbone
    head: torch.nn.Linear = backbone.get_classifier()
    bias = head.bias is not None
    cells: dict[str, Json] = {}
    for stem, side in itertools.product(stems, NETWORK_SIZES):
        if not _divides(probe, stem, side):
            continue
        macs, params = zoo.macs_params(arch, classes=_PROBE_CLASSES, network_size=Size(side, side), stem=stem)
        cells[f"{side}x{side}|{stem}"] = {
            "macs": macs - _PROBE_CLASSES * head.in_features,
            "params": params - _PROBE_CLASSES * (head.in_features + bias),
        }
    return {
        "family": probe.family,
        "stems": stems,
        "head_features": head.in_features,
        "head_bias": bias,
        "cells": cells,
    }


def generate(archs: Iterable[str] = ARCHS) -> dict[str, Json]:
    """The catalogue as ``search.catalogue`` reads it; the same in every process with the same libraries."""
    return {
        "made_with": {name: version(name).partition("+")[0] for name in ("timm", "torch")},
        "names": sorted(timm.list_models()),
        "image_sizes": [f"{side}x{side}" for side in IMAGE_SIZES],
        "archs": {arch: describe(arch) for arch in sorted(archs)},
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


def _stems(probe: zoo.Network) -> list[str]:
    stride = zoo.input_convolution(probe).stride
    return [stem for stem in zoo.STEMS[probe.family] if stem != "stride1" or stride == (2, 2)]


def _divides(probe: zoo.Network, stem: str, side: int) -> bool:
    """False for a size that a ViT's patch does not divide."""
    if probe.family != "vit":
        return True
    vit: Any = probe.backbone
    patch = int(vit.patch_embed.patch_size[0]) // (2 if stem == "half_patch" else 1)
    return side % patch == 0


def _digest(root: Path, paths: Iterable[Path], libraries: Iterable[str]) -> str:
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in libraries).encode())
    for path in paths:
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()


if __name__ == "__main__":
    PATH.write_text(to_text(generate()), encoding="utf-8")
