"""The one training loop: teacher, assistant and student alike.

- An epoch's batches and views are pure functions of (seed, epoch), so a resumed run takes the very steps that an
  uninterrupted one takes, to the bit on the same CPU and thread count.
- AdamW (Loshchilov & Hutter 2019) without decay on biases and norms, one-cycle rate (Smith & Topin 2018) or a plain
  cosine. The last epoch's weights, or their moving average, are the result: the rate has come down by then, and
  picking the best of a noisy validation curve would flatter it.
- Channels last on every device: on CPU it makes small depth-wise networks 1.5 times as fast. On GPU: autocast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.distill.device import autocast, default_device, half
from stillhouse.distill.feed import Feed, Pictures
from stillhouse.distill.method import Batch, Method
from stillhouse.distill.progress import Progress, Report
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Accuracy, Json, Size
from stillhouse.search.errors import StageError
from stillhouse.search.failpoints import passing

GRADIENT_NORM = 5.0
WARM_UP = 0.25
"""Share of the steps in which the rate rises."""
START = 1 / 25
"""Share of the peak rate that the warm-up starts from."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        epochs: Passes over the pictures.
        rate: Peak learning rate.
        seed: Decides order, views and all random draws.
        batch: Pictures a step.
        weight_decay: Of AdamW.
        schedule: ``one_cycle`` or ``cosine``: with a warm-up, or from the peak down.
        ema: Decay of a moving average of the weights, which then is the result; 0 for none. After n steps the decay is
            (1 + n) / (10 + n) where that is less, so that a short training does not ship its first weights.
        compile: Compiles the network where the method reads nothing inside it. Changes speed, and rounding.
        until: Stops after this many epochs of the schedule, with a checkpoint to go on from; None trains to the end.
    """

    epochs: int
    rate: float
    seed: int
    batch: int = 32
    weight_decay: float = 0.05
    schedule: str = "one_cycle"
    ema: float = 0.0
    compile: bool = False
    until: int | None = None

    @property
    def last(self) -> int:
        """Epochs after which the training stops."""
        return self.epochs if self.until is None else min(self.until, self.epochs)


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak rate at a step from 0: a cosine up from 1/25 over the warm-up, then a cosine down to 0.

    torch's own OneCycleLR divides by zero when the warm-up is one step, as on a handful of pictures.
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return START + (1 - START) * (1 - math.cos(math.pi * (step + 1) / warm)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - warm + 1) / max(1, steps - warm)))) / 2


def cosine(step: int, steps: int) -> float:
    """Share of the peak rate at a step from 0: a cosine from 1 down to 0."""
    return (1 + math.cos(math.pi * (step + 1) / steps)) / 2


SCHEDULES = {"one_cycle": one_cycle, "cosine": cosine}


def train(method: Method, pictures: Pictures, recipe: Recipe, *, work: Path, report: Report) -> list[dict[str, Json]]:
    """Trains ``method.student`` in place, from the newest checkpoint under ``work`` if there is one.

    Returns:
        One row an epoch: mean of each loss, validation accuracy, seconds.

    Raises:
        StageError: A loss is not finite.
    """
    device = default_device()
    network = method.student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.extra.to(device)
    torch.manual_seed(recipe.seed)
    feed = Feed(method, pictures, batch=recipe.batch, seed=recipe.seed, device=device)
    trainer = Trainer(method, recipe, recipe.epochs * feed.steps(0), device)
    progress = Progress(report, recipe.epochs, len(pictures.labels))
    start = trainer.resume(work, progress)
    for epoch in range(start, recipe.last):
        passing("epoch.before")
        began = time.monotonic()
        losses = _epoch(trainer, feed, epoch, progress)
        score = evaluate(trainer.result, method.task, pictures.val, pictures.val_labels, batch=4 * recipe.batch)
        seconds = time.monotonic() - began
        progress.history.append({"epoch": epoch + 1, "losses": losses, "val_accuracy": score.value, "seconds": seconds})
        if epoch + 1 < recipe.epochs:
            trainer.checkpoint(work, epoch + 1, progress)
        progress.step(epoch, len(pictures.labels), seconds, losses, force=True)
    if trainer.average is not None:
        network.load_state_dict(trainer.result.state_dict())
    return progress.history


class Trainer:
    """A student with all that a step changes: optimiser, rate, moving average.

    Args:
        method: Its student and extra modules are trained.
        recipe: How fast.
        steps: Of the whole training.
        device: Where they are.
    """

    def __init__(self, method: Method, recipe: Recipe, steps: int, device: torch.device) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        network = method.student
        groups = _groups(network, method.extra, recipe.weight_decay)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.rate)
        shape = SCHEDULES[recipe.schedule]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: shape(step, steps))
        # Gradients underflow in float16 alone; elsewhere the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=half(device) is torch.float16)
        self.parts: dict[str, Any] = {
            "network": network,
            "extra": method.extra,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        self.average: AveragedModel | None = None
        if recipe.ema:
            average = _warmed_average(recipe.ema)
            self.average = self.parts["average"] = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        if recipe.compile and method.compiles:
            network.compile()

    @property
    def result(self) -> Network:
        """The network that is judged and kept."""
        found: Network = self.method.student if self.average is None else self.average.module  # type: ignore[assignment]
        return found

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step; returns its losses by name, detached, still on the device."""
        with autocast(self.device):
            losses = self.method.losses(batch)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.method.student)
        return {name: value.detach().float() for name, value in losses.items()}

    def checkpoint(self, work: Path, epoch: int, progress: Progress) -> None:
        """Writes the state after ``epoch`` epochs."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        rng = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(work, epoch, {**state, "rng": rng, "epoch": epoch, "history": progress.history})

    def resume(self, work: Path, progress: Progress) -> int:
        """Loads the newest checkpoint; returns the epochs that are done."""
        state = load_checkpoint(work)
        if state is None:
            return 0
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"]["torch"])
        if "cuda" in state["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        progress.history.extend(state["history"])
        return int(state["epoch"])


def evaluate(
    network: Network, task: Task, pictures: NDArray[np.uint8], labels: NDArray[np.int64], *, batch: int = 128
) -> Accuracy:
    """Accuracy on pictures (M, h, w, C) uint8; the network is left in evaluation mode."""
    device = next(network.parameters()).device
    network.eval()
    correct = 0
    for start in range(0, len(labels), batch):
        chunk = to_tensor(pictures[start : start + batch]).to(device, memory_format=torch.channels_last)
        expected = torch.from_numpy(labels[start : start + batch]).to(device)
        with torch.no_grad():
            correct += task.score(network(chunk), expected).correct
    return Accuracy(correct, len(labels))


# ---------------------------------------------------------------------------------------- helpers


def _epoch(trainer: Trainer, feed: Feed, epoch: int, progress: Progress) -> dict[str, float]:
    """One pass; returns the mean of each loss. Losses stay on the device until they are reported."""
    trainer.method.student.train()
    trainer.method.extra.train()
    sums: dict[str, Tensor] = {}
    seen, began = 0, time.monotonic()
    for batch in feed.batches(epoch):
        losses = trainer.step(batch)
        seen += len(batch.labels)
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch.labels)
        if progress.due():
            progress.step(epoch, seen, time.monotonic() - began, _means(sums, seen, epoch))
    return _means(sums, seen, epoch)


def _means(sums: Mapping[str, Tensor], seen: int, epoch: int) -> dict[str, float]:
    means = {name: float(value) / seen for name, value in sums.items()}
    if not all(map(math.isfinite, means.values())):
        found = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        raise StageError(f"the loss is not finite in epoch {epoch + 1} ({found}); lower the rate or the knobs")
    return means


def _warmed_average(most: float) -> Callable[..., None]:
    """A moving average whose decay grows to ``most`` (the warm-up of TensorFlow's ExponentialMovingAverage)."""

    def average(kept: Any, current: Any, count: Tensor) -> None:
        steps = float(count)
        update = get_ema_multi_avg_fn(min(most, (1 + steps) / (10 + steps)))  # type: ignore[no-untyped-call]
        update(kept, current, count)

    return average


def _groups(network: Network, extra: nn.Module, decay: float) -> list[dict[str, Any]]:
    parameters = [p for module in (network, extra) for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, h, w, C) uint8 -> (N, C, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def large_store_size(large: Size) -> Size:
    """The size that training pictures are stored at, a little over the large crop's (8/7, as 256 is to 224)."""
    return Size(math.ceil(large.height * 8 / 7), math.ceil(large.width * 8 / 7))
