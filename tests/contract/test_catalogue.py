"""What every network of the shipped catalogue must do, and that its figures are those of the code."""

from __future__ import annotations

import json
import random
import re
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch

from stillhouse.distill import catalogue, zoo
from stillhouse.search.catalogue import Catalogue, lacking
from stillhouse.search.domain import Json, Size
from stillhouse.search.errors import StageError, UserError
from stillhouse.service import cell_check, worker
from stillhouse.service.cell_check import LEAST_LIKENESS, STEPS, Verdict, cells_of, check_cell, key_of

SHIPPED: dict[str, Json] = json.loads(catalogue.PATH.read_text(encoding="utf-8"))
CHECKS: dict[str, Json] = json.loads(catalogue.CHECKS.read_text(encoding="utf-8"))
SAMPLE, CHECKED_SAMPLE = 6, 3
NEAR_THE_BOUND = 0.1
FAMILIES = {
    "MobileNet v2": "mobilenetv2_",
    "MobileNet v3": "mobilenetv3_",
    "MobileNet v4": "mobilenetv4_",
    "LCNet": "lcnet_",
    "TinyNet": "tinynet_",
    "EfficientNet-lite": "tf_efficientnet_lite",
    "MNASNet": "mnasnet_",
    "GhostNet": "ghostnet_",
    "RepVGG": "repvgg_",
    "MobileOne": "mobileone_",
    "RepViT": "repvit_",
    "ResNet-10t": "resnet10t$",
    "ResNet-14t": "resnet14t$",
    "ResNet-18": "resnet18$",
    "ConvNeXt-atto": "convnext_atto",
    "ConvNeXt-femto": "convnext_femto",
    "EfficientViT": "efficientvit_",
    "FastViT": "fastvit_",
    "EdgeNeXt": "edgenext_",
    "MobileViT": "mobilevit_",
    "ViT-tiny": "vit_tiny_",
    "DeiT-tiny": "deit_tiny_",
    "TinyViT": "tiny_vit_",
}
"""Families that the catalogue must cover, with how names of each begin in timm."""


def test_it_lists_the_curated_networks() -> None:
    assert set(SHIPPED["archs"]) <= set(catalogue.ARCHS)
    assert len(SHIPPED["archs"]) >= 42
    for family, prefix in FAMILIES.items():
        assert any(re.match(prefix, name) for name in SHIPPED["archs"]), family
    assert {entry["family"] for entry in SHIPPED["archs"].values()} == {"cnn", "vit"}
    assert SHIPPED["image_sizes"] == [f"{side}x{side}" for side in catalogue.IMAGE_SIZES]


def test_names_are_timms() -> None:
    assert set(SHIPPED["archs"]) <= set(SHIPPED["names"])
    if SHIPPED["made_with"]["timm"] == timm.__version__:
        assert SHIPPED["names"] == sorted(timm.list_models())
    assert all(zoo.is_known(name) for name in SHIPPED["archs"])


def test_enough_of_it_fits_small_devices() -> None:
    small = {
        arch
        for arch, entry in SHIPPED["archs"].items()
        for cell, cost in entry["cells"].items()
        if 64 <= int(cell.split("x")[0]) <= 128 and cost["macs"] < 60e6 and 4 * cost["params"] < 4e6
    }
    assert len(small) >= 5


def test_the_text_is_what_the_writer_writes() -> None:
    assert catalogue.PATH.read_text(encoding="utf-8") == catalogue.to_text(SHIPPED)


@pytest.mark.parametrize("arch", ["lcnet_035", "deit_tiny_patch16_224"])
def test_an_entry_is_what_the_code_counts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32), Size(48, 64)))
    entry = catalogue.describe(arch)
    shipped = SHIPPED["archs"][arch]
    assert {name: value for name, value in entry.items() if name != "cells"} == {
        name: value for name, value in shipped.items() if name != "cells"
    }
    assert entry["cells"].items() <= shipped["cells"].items()
    wanted = {f"{size}|{stem}" for size in ("32x32", "48x64") for stem in shipped["stems"]}
    assert set(entry["cells"]) == wanted


def test_a_random_sample_of_cells_is_what_the_code_counts(record_property: Any) -> None:
    seed = secrets.randbelow(2**32)
    record_property("seed", seed)
    print(f"sample of cells drawn with seed {seed}")
    cells = [(arch, cell) for arch, entry in SHIPPED["archs"].items() for cell in entry["cells"]]
    shipped = Catalogue.from_json(SHIPPED)
    for arch, cell in random.Random(seed).sample(cells, SAMPLE):
        size, stem = Size.parse(cell.split("|")[0]), cell.split("|")[1]
        for colour in ("rgb", "grey"):
            counted = zoo.macs_params(arch, classes=37, network_size=size, stem=stem, colour=colour)
            assert shipped.costs(arch, size, stem, 37, colour) == counted, f"{arch} {cell} {colour}, seed {seed}"


def test_sizes_that_no_cell_lists_cost_what_the_code_counts(record_property: Any) -> None:
    seed = secrets.randbelow(2**32)
    record_property("seed", seed)
    print(f"sample of sizes drawn with seed {seed}")
    shipped, rng = Catalogue.from_json(SHIPPED), random.Random(seed)
    stems = [(arch, stem) for arch, entry in shipped.archs.items() for stem in entry.stems]
    for arch, stem in rng.sample(stems, 2 * SAMPLE):
        wanted = Size(rng.randint(32, 216), rng.randint(32, 216))
        size = shipped.archs[arch].formulas.covering(wanted, stem)
        if size is not None:
            for colour in ("rgb", "grey"):
                counted = zoo.macs_params(arch, classes=37, network_size=size, stem=stem, colour=colour)
                assert shipped.costs(arch, size, stem, 37, colour) == counted, f"{arch} {size} {stem}, seed {seed}"


@pytest.mark.parametrize("arch", sorted(SHIPPED["archs"]))
def test_every_network_reads_grey_and_then_costs_two_channels_less(arch: str) -> None:
    shipped, size = Catalogue.from_json(SHIPPED), Size(48, 64)
    stem = SHIPPED["archs"][arch]["stems"][-1]
    counted = zoo.macs_params(arch, classes=5, network_size=size, stem=stem, colour="grey")
    assert shipped.costs(arch, size, stem, 5, "grey") == counted
    colour = shipped.costs(arch, size, stem, 5)
    assert counted[0] < colour[0]
    assert counted[1] < colour[1]


def test_a_network_that_cannot_be_built_for_grey_has_no_such_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(arch: str, **options: Any) -> Any:
        if "in_chans" in options:
            raise TypeError("unexpected keyword argument 'in_chans'")
        return real(arch, **options)

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32),))
    entry = catalogue.describe("lcnet_035")
    assert entry["cells"]["32x32|stock"].keys() == {"macs", "params"}
    found = Catalogue.from_json({"names": [], "image_sizes": [], "archs": {"lcnet_035": entry}})
    assert (found.reads("lcnet_035", "rgb"), found.reads("lcnet_035", "grey")) == (True, False)
    with pytest.raises(UserError, match="costs of lcnet_035 must be known for grey pictures"):
        found.costs("lcnet_035", Size(32, 32), "stock", 2, "grey")


@pytest.mark.parametrize("arch", ["repvit_m0_9", "efficientvit_b0", "ghostnet_050", "vit_tiny_patch16_224"])
def test_each_class_costs_what_the_planner_adds(arch: str) -> None:
    """Heads of all kinds: two averaged ones that are merged, hidden layers, a convolution before it, a plain one."""
    size = Size(64, 64)
    shipped = Catalogue.from_json(SHIPPED).costs(arch, size, "stock", 123)
    assert shipped == zoo.macs_params(arch, classes=123, network_size=size)


def test_sizes_that_a_network_cannot_compute_at_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32), Size(48, 64), Size(54, 96)))
    assert list(catalogue.describe("ghostnetv2_100", ("stride1",))["cells"]) == ["48x64|stock", "54x96|stock"]
    assert set(catalogue.describe("vit_tiny_patch16_224")["cells"]) == {
        "32x32|stock",
        "48x64|stock",
        "32x32|half_patch",
        "48x64|half_patch",
    }
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(33, 33),))
    with pytest.raises(StageError, match="none of the sizes 33x33"):
        catalogue.describe("vit_tiny_patch16_224")


# ------------------------------------------------------------------------------------------ checks


def test_every_cell_was_checked() -> None:
    assert list(CHECKS["cells"]) == [key_of(*cell) for arch in sorted(catalogue.ARCHS) for cell in cells_of(arch)]
    for name, cell in CHECKS["cells"].items():
        assert ("reason" in cell) == (not all(cell[step] for step in STEPS)), name


def test_what_failed_is_left_out() -> None:
    shipped = {
        "|".join((arch, *reversed(cell.split("|"))))
        for arch, entry in SHIPPED["archs"].items()
        for cell in entry["cells"]
    }
    assert shipped == {name for name, cell in CHECKS["cells"].items() if cell["exports"]}


def test_what_failed_is_told_by_place_and_precision() -> None:
    fp16, both = (
        "fp16: logits are not finite",
        "fp16: no such operator; twice; int8: the cosine must be >= 0.6, but is 0.1",
    )
    trains, exports = "trains: a gradient is not finite (loss 3: nan)", "exports: no such operator"
    cells = {
        "a|stock|64x64": {"reason": both},
        "b|stock|64x64": {},
        "b|stride1|32x32": {"reason": fp16},
        "b|stride1|36x64": {},
        "c|stock|64x64": {"reason": trains},
        "d|stock|32x32": {"reason": exports},
        "d|stock|48x48": {"reason": fp16},
        "d|stock|64x64": {"reason": both},
    }
    no_int8 = {"fp16": "no such operator; twice", "int8": "the cosine must be >= 0.6, but is 0.1"}
    assert catalogue.lacking({"cells": cells}) == {
        "a": {"stock": no_int8},
        "b": {"32x32|stride1": {"fp16": "logits are not finite"}},
        "d": {"stock": {"fp16": "logits are not finite"}, "64x64|stock": no_int8},
    }
    assert catalogue.excluded({"cells": cells}) == {"c": {"stock": trains}, "d": {"32x32|stock": exports}}


def test_a_cell_that_failed_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(32, 32), Size(64, 64), Size(48, 64)))
    places = {f"{size}|{stem}" for _, size, stem in cells_of("lcnet_035")}
    assert catalogue.describe("lcnet_035", ("stride1", "64x64|stock"))["cells"].keys() == {
        place for place in places if place.endswith("|stock")
    } - {"64x64|stock"}


def test_what_is_published_says_what_failed() -> None:
    published = Catalogue.from_json(worker.catalogue())
    for name, cell in CHECKS["cells"].items():
        arch, stem, size = name.split("|")
        if cell["exports"]:
            fails = {step for step in ("fp16", "int8") if not cell[step]}
            assert lacking(published.archs[arch].lacks, Size.parse(size), stem).keys() == fails, name
        else:
            assert not {stem, f"{size}|{stem}"}.isdisjoint(published.excluded[arch]), name
            with pytest.raises(UserError, match="failed its check"):
                published.costs(arch, Size.parse(size), stem, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_random_sample_of_checks_comes_out_again(record_property: Any) -> None:
    seed = secrets.randbelow(2**32)
    record_property("seed", seed)
    print(f"sample of checks drawn with seed {seed}")
    for name in random.Random(seed).sample(sorted(CHECKS["cells"]), CHECKED_SAMPLE):
        arch, stem, size = name.split("|")
        told, found = CHECKS["cells"][name], check_cell(arch, Size.parse(size), stem).to_json()
        close = abs(told["likeness"].get("int8", 0) - LEAST_LIKENESS["int8"]) < NEAR_THE_BOUND
        steps = [step for step in STEPS if step != "int8" or not close]  # processors round int8 in their own ways
        assert {step: found[step] for step in steps} == {step: told[step] for step in steps}, f"{name}, seed {seed}"


def test_a_check_says_what_fails() -> None:
    verdict = check_cell("vit_tiny_patch16_224", Size(33, 33), "stock").to_json()
    assert not any(verdict[step] for step in STEPS)
    assert verdict["reason"].startswith("builds: the network size of vit_tiny_patch16_224")


def test_the_table_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arch: str, size: Size, stem: str) -> Verdict:
        asked.append(f"{arch}|{stem}|{size}")
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Verdict(frozenset(STEPS), {}, {"int8": 0.5}, 1.0)

    asked: list[str] = []
    path = tmp_path / "checks.json"
    monkeypatch.setattr(catalogue, "ARCHS", ("lcnet_035",))
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (Size(64, 64), Size(32, 32)))
    monkeypatch.setattr(cell_check, "check_cell", broken)
    with pytest.raises(KeyboardInterrupt):
        cell_check.write_table(path, say=lambda _: None)
    cell_check.write_table(path, say=lambda _: None)
    assert asked == [
        "lcnet_035|stock|32x32",
        "lcnet_035|stride1|32x32",
        *asked[1:2],
        "lcnet_035|stock|64x64",
        *asked[-1:],
    ]
    assert set(json.loads(path.read_text(encoding="utf-8"))["cells"]) == set(asked)


@pytest.mark.parametrize(
    ("arch", "image", "computed", "stem"),
    [("lcnet_035", 32, 48, "stride1"), ("vit_tiny_patch16_224", 32, 32, "half_patch")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_exports_with_a_dynamic_batch(arch: str, image: int, computed: int, stem: str, tmp_path: Path) -> None:
    network = zoo.build(
        arch, classes=3, image_size=Size(image, image), network_size=Size(computed, computed), stem=stem
    ).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.onnx.export(
        network,
        (torch.rand(2, 3, image, image),),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["pictures"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        pictures = torch.rand(count, 3, image, image)
        (found,) = session.run(None, {"pictures": pictures.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, network(pictures).numpy(), atol=1e-4)


def test_digests_follow_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "distill"
    (package / "data").mkdir(parents=True)
    for name in ("catalogue.py", "loop.py", "data/ingest.py", "data/store.py", "data/textures.py"):
        (package / name).write_text("a = 1\n", encoding="utf-8")
    monkeypatch.setattr(catalogue, "__file__", str(package / "catalogue.py"))

    def changed_by(name: str) -> set[str]:
        before = catalogue.code_digests()
        with (package / name).open("a", encoding="utf-8") as file:
            file.write("b = 2\n")
        after = catalogue.code_digests()
        return {kind for kind in before if before[kind] != after[kind]}

    assert set(catalogue.code_digests()) == {"ingest", "probe", "teacher", "targets", "assistant", "student"}
    trained = {"probe", "teacher", "targets", "assistant", "student"}
    assert changed_by("loop.py") == trained
    assert changed_by("data/store.py") == trained
    assert changed_by("data/ingest.py") == trained | {"ingest"}
    assert changed_by("data/textures.py") == {"ingest"}
    assert changed_by("catalogue.py") == set()
