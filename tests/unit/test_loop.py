"""The loop's own laws: rates, the moving average, what counts as the result; and the feed's batches."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from knobs import at_work
from stillhouse.distill import methods, zoo
from stillhouse.distill.data.reader import Codec, Reader
from stillhouse.distill.data.views import ViewPolicy, Views
from stillhouse.distill.feed import Feed, Pictures
from stillhouse.distill.knowledge import observe, outline
from stillhouse.distill.loop import SCHEDULES, Recipe, Trainer, cosine, evaluate, one_cycle, train
from stillhouse.distill.method import Method
from stillhouse.distill.targets import Cache, write_targets
from stillhouse.distill.tasks.classification import Classification
from stillhouse.search.domain import Accuracy, Size

COUNT, CLASSES, SMALL, LARGE = 13, 3, Size(32, 32), Size(48, 48)
CPU = torch.device("cpu")


@cache
def mentor() -> zoo.Network:
    torch.manual_seed(1)
    return zoo.build("lcnet_035", classes=CLASSES, image_size=LARGE).eval()


def method_of(name: str = "supervised", **knobs: float) -> Method:
    kind = methods.registry()[name]
    told = outline(mentor(), kind.needs.features) if kind.needs.targets else None
    torch.manual_seed(0)
    student = zoo.build("lcnet_035", classes=CLASSES, image_size=SMALL)
    return kind(at_work(kind, knobs), Classification(), student, told, LARGE)


def pictures_of(mixup: float = 0.0, **more: Any) -> Pictures:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (COUNT, 50, 50, 3), dtype=np.uint8)
    labels = np.arange(COUNT) % CLASSES
    val = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    views = Views("digest", 0, ViewPolicy(mixup=mixup), COUNT)
    return Pictures(stored, labels, val, labels[:6], views, 2, **more)


# -------------------------------------------------------------------------------------------- rates

step_counts = pytest.mark.parametrize("steps", [1, 2, 4, 40, 1000])


@step_counts
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(steps: int) -> None:
    rates = [one_cycle(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert steps < 3 or rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert peak == max(1, round(0.25 * steps)) - 1


@step_counts
def test_cosine_falls_from_its_peak_to_nothing(steps: int) -> None:
    rates = [cosine(step, steps) for step in range(steps)]
    assert rates == sorted(rates, reverse=True)
    assert all(0 <= rate < 1 for rate in rates)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[0] == pytest.approx((1 + math.cos(math.pi / steps)) / 2)
    for step in range(steps - 1):  # point symmetric about the middle
        assert rates[step] + rates[steps - 2 - step] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_optimisers_rate_follows_the_schedule(schedule: str) -> None:
    method = method_of()
    trainer = Trainer(method, Recipe(epochs=2, rate=0.01, seed=0, schedule=schedule), 6, CPU)
    feed = Feed(method, pictures_of(), batch=5, seed=0, device=CPU)
    used = []
    for batch in [*feed.batches(0), *feed.batches(1)]:
        used.append([group["lr"] for group in trainer.optimiser.param_groups])
        trainer.step(batch)
    assert len(used) == 6
    for step, rates in enumerate(used):
        assert rates == pytest.approx([0.01 * SCHEDULES[schedule](step, 6)] * 2)


def test_norms_and_biases_do_not_decay() -> None:
    method = method_of("pixel", gamma=1.0)
    groups = Trainer(method, Recipe(epochs=1, rate=0.01, seed=0, weight_decay=0.1), 3, CPU).optimiser.param_groups
    everything = [*method.student.parameters(), *method.extra.parameters()]
    assert sum(len(group["params"]) for group in groups) == len(everything)
    for group in groups:
        assert group["weight_decay"] in (0.0, 0.1)
        assert all((value.ndim > 1) is (group["weight_decay"] > 0) for value in group["params"])


# --------------------------------------------------------------------------------- moving average


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> tuple[Method, list[dict[str, Tensor]]]:
    """The method after training, and the student's state after each step."""
    after: list[dict[str, Tensor]] = []
    step = Trainer.step

    def watched(self: Trainer, batch: Any) -> Any:
        losses = step(self, batch)
        after.append({name: value.clone() for name, value in self.method.student.state_dict().items()})
        return losses

    monkeypatch.setattr(Trainer, "step", watched)
    method = method_of()
    given: dict[str, Any] = {"epochs": 2, "rate": 0.01, "seed": 0, "batch": 5, **recipe}
    train(method, pictures_of(), Recipe(**given), work=folder, report=lambda _: None)
    return method, after


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_result_is_the_moving_average_of_weights_and_statistics(
    decay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Tensor]] = []

    def judging(network: zoo.Network, *args: Any, **more: Any) -> Accuracy:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        return evaluate(network, *args, **more)

    monkeypatch.setattr("stillhouse.distill.loop.evaluate", judging)
    method, after = trained(tmp_path, monkeypatch, ema=decay)
    assert (len(after), len(judged)) == (6, 2)
    floats = [name for name, value in after[0].items() if value.is_floating_point()]
    assert any("running_mean" in name for name in floats)
    expected = {name: after[0][name].double() for name in floats}  # it starts at the weights after the first step
    for count, state in enumerate(after[1:], start=1):
        kept = min(decay, (1 + count) / (10 + count))  # it warms up: at first the past weighs little
        for name in floats:
            expected[name] = kept * expected[name] + (1 - kept) * state[name].double()
    found = method.student.state_dict()
    for name in floats:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-7)
    assert any(not torch.allclose(found[name], after[-1][name]) for name in floats)
    for name, value in judged[-1].items():
        assert torch.equal(value, found[name]), "the average is what is judged"


def test_the_average_changes_nothing_of_the_training_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, steps = trained(tmp_path / "plain", monkeypatch)
    monkeypatch.undo()
    _, averaged = trained(tmp_path / "averaged", monkeypatch, ema=0.9)
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, steps[-1][name]), "without an average the last weights are the result"
        assert torch.equal(value, averaged[-1][name])


# --------------------------------------------------------------------------------------------- feed


def cached(method: Method, pictures: Pictures, folder: Path, most_bytes: int) -> Cache:
    reader = Reader(pictures.train, pictures.views, LARGE, view_count=2, keep_bytes=0)
    folder.mkdir()
    wanted = {"features": method.features, "most_bytes": most_bytes}
    return Cache.open(*write_targets(mentor(), reader, 2, folder, **wanted, report=lambda _: None))


@pytest.mark.parametrize(("batch", "sizes"), [(5, [5, 5, 3]), (6, [6, 7]), (12, [13]), (13, [13]), (64, [13])])
def test_an_epoch_shows_each_picture_once(batch: int, sizes: list[int]) -> None:
    """A last batch of one picture has no batch statistics: it joins the one before it."""
    pictures = pictures_of()
    numbered = Pictures(**{**vars(pictures), "labels": np.arange(COUNT)})
    feed = Feed(method_of(), numbered, batch=batch, seed=0, device=CPU)
    epochs = [[b.labels.tolist() for b in feed.batches(epoch)] for epoch in (0, 1, 0)]
    assert [len(labels) for labels in epochs[0]] == sizes
    assert feed.steps(0) == len(sizes)
    assert all(sorted(label for labels in epoch for label in labels) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] == epochs[2]
    assert len(sizes) == 1 or epochs[0] != epochs[1]


def test_a_batch_holds_views_labels_and_knowledge_of_the_same_pictures(tmp_path: Path) -> None:
    method, codec = method_of("tas"), Codec("jpeg", 60, 0.5)
    plain = pictures_of(0.5, codec=codec)
    pictures = Pictures(**{**vars(plain), "cache": cached(method, plain, tmp_path / "cache", 1 << 30)})
    feed = Feed(method, pictures, batch=5, seed=4, device=CPU)
    small, large = (
        Reader(pictures.train, pictures.views, size, view_count=2, codec=used)
        for size, used in ((SMALL, codec), (LARGE, None))
    )
    for epoch in (0, 1, 2):
        for indices, batch in zip(feed._batches(epoch), feed.batches(epoch), strict=True):
            view, drawn = epoch % 2, pictures.views.draw(indices, epoch % 2)
            assert torch.equal(batch.small, small.read(indices, view))
            assert batch.large is not None
            assert torch.equal(batch.large, large.read(indices, view)), "large pictures are not coded"
            assert batch.taught is not None
            told = observe(mentor(), batch.large, "native")
            torch.testing.assert_close(batch.taught.logits, told.logits, rtol=2e-3, atol=1e-4)
            for found, wanted in zip(batch.taught.features, told.features, strict=True):
                torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-3)
            for place, index in enumerate(indices):
                wanted = np.zeros(CLASSES)
                wanted[index % CLASSES] += drawn.own[place]  # type: ignore[index]
                wanted[drawn.partner[place] % CLASSES] += 1 - drawn.own[place]  # type: ignore[index]
                assert np.allclose(batch.labels[place], wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["tas", "hints"])
@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_features_that_are_not_cached_are_told_live(name: str, mixup: float, tmp_path: Path) -> None:
    method = method_of(name)
    plain = pictures_of(mixup)
    feeds = {}
    for way, room in (("cached", 1 << 30), ("live", 0)):
        cache_ = cached(method, plain, tmp_path / way, room)
        assert bool(cache_.features) is (way == "cached")
        pictures = Pictures(**{**vars(plain), "cache": cache_, "mentor": mentor() if way == "live" else None})
        feeds[way] = Feed(method, pictures, batch=5, seed=0, device=CPU).batches(1)
    for kept, live in zip(feeds["cached"], feeds["live"], strict=True):
        assert torch.equal(kept.small, live.small)
        assert torch.equal(kept.labels, live.labels)
        assert kept.taught is not None
        assert live.taught is not None
        values = [(t.logits, *t.features) for t in (kept.taught, live.taught)]
        assert len(values[0]) == 4
        for found, wanted in zip(*values, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-3)


def test_features_that_are_neither_cached_nor_live_are_missed_at_once(tmp_path: Path) -> None:
    method, plain = method_of("tas"), pictures_of()
    pictures = Pictures(**{**vars(plain), "cache": cached(method, plain, tmp_path / "cache", 0)})
    with pytest.raises(ValueError, match="method tas reads features that are not cached"):
        Feed(method, pictures, batch=5, seed=0, device=CPU)
    Feed(method_of("logits"), pictures, batch=5, seed=0, device=CPU)
