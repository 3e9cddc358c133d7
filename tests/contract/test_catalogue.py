"""What every network of the shipped catalogue must do, and that its figures are those of the code."""

from __future__ import annotations

import json
import random
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.nn import functional as F

from stillhouse.distill import catalogue, zoo
from stillhouse.search.catalogue import Catalogue
from stillhouse.search.domain import Json, Size

SHIPPED: dict[str, Json] = json.loads(catalogue.PATH.read_text(encoding="utf-8"))
BUILDS = [(arch, stem) for arch, entry in SHIPPED["archs"].items() for stem in entry["stems"]]
SAMPLE = 6


def test_it_lists_the_curated_networks() -> None:
    assert sorted(catalogue.ARCHS) == list(SHIPPED["archs"])
    assert len(SHIPPED["archs"]) >= 14
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
    monkeypatch.setattr(catalogue, "NETWORK_SIZES", (32, 48))
    entry = catalogue.describe(arch)
    shipped = SHIPPED["archs"][arch]
    assert {name: value for name, value in entry.items() if name != "cells"} == {
        name: value for name, value in shipped.items() if name != "cells"
    }
    assert entry["cells"].items() <= shipped["cells"].items()
    wanted = {f"{side}x{side}|{stem}" for side in (32, 48) for stem in shipped["stems"]}
    assert set(entry["cells"]) == wanted


def test_a_random_sample_of_cells_is_what_the_code_counts(record_property: Any) -> None:
    seed = secrets.randbelow(2**32)
    record_property("seed", seed)
    print(f"sample of cells drawn with seed {seed}")
    cells = [(arch, cell) for arch, entry in SHIPPED["archs"].items() for cell in entry["cells"]]
    shipped = Catalogue.from_json(SHIPPED)
    for arch, cell in random.Random(seed).sample(cells, SAMPLE):
        size, stem = Size.parse(cell.split("|")[0]), cell.split("|")[1]
        counted = zoo.macs_params(arch, classes=37, network_size=size, stem=stem)
        assert shipped.costs(arch, size, stem, 37) == counted, f"{arch} {cell}, seed {seed}"


@pytest.mark.parametrize("arch", catalogue.ARCHS)
def test_the_classifier_costs_what_the_planner_adds(arch: str) -> None:
    entry = SHIPPED["archs"][arch]
    size = Size(64, 64)
    body = entry["cells"][f"{size}|stock"]
    macs, params = zoo.macs_params(arch, classes=123, network_size=size)
    assert macs - body["macs"] == entry["head_features"] * 123
    assert params - body["params"] == entry["head_features"] * 123 + 123 * entry["head_bias"]


@pytest.mark.parametrize(("arch", "stem"), BUILDS)
def test_it_builds_and_takes_a_training_step(arch: str, stem: str) -> None:
    torch.manual_seed(0)
    network = zoo.build(arch, classes=3, image_size=Size(32, 32), stem=stem)
    parameters = dict(network.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    logits = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 3)
    F.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in parameters.values())
    optimiser.step()
    assert any(not torch.equal(value, before[name]) for name, value in parameters.items())
    assert all(bool(value.isfinite().all()) for value in parameters.values())


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
