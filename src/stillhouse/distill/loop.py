"""The one training loop: teacher, assistant and student alike.

- An epoch's batches and views are pure functions of (seed, epoch), so a resumed run takes the very steps that an
  uninterrupted one takes, to the bit on the same CPU and thread count.
- AdamW (Loshchilov & Hutter 2019) without decay on biases and norms, one-cycle rate (Smith & Topin 2018). The last
  epoch's weights are the result: the rate has come down by then, and picking the best of a noisy validation curve
  would flatter it.
- The next batch is rendered in a thread while this one trains. On GPU: autocast and channels_last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.distill.data.views import Views, render
from stillhouse.distill.method import Batch, Method
from stillhouse.distill.task import Task
from stillhouse.distill.zoo import Network
from stillhouse.search.domain import Accuracy, Json, Size
from stillhouse.search.errors import StageError

Report = Callable[[Mapping[str, Json]], None]
REPORT_EVERY_S = 0.5
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
    """

    epochs: int
    rate: float
    seed: int
    batch: int = 32
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Pictures:
    """What is trained and validated on.

    Attributes:
        train: (N, S, S, 3) uint8.
        labels: (N,) int64.
        val: (M, h, w, 3) uint8 at the network's own picture size.
        val_labels: (M,) int64.
        views: Draws the crops.
        view_count: Views a picture has; epoch e shows view e modulo this.
        targets: Teacher's logits (V, N, K) float16, or None.
    """

    train: NDArray[np.uint8]
    labels: NDArray[np.int64]
    val: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    views: Views
    view_count: int
    targets: NDArray[np.float16] | None = None


@dataclass
class Progress:
    """Running figures of one training; reported at most twice a second."""

    report: Report
    recipe: Recipe
    pictures: int
    history: list[dict[str, Json]] = field(default_factory=list)
    _last: float = 0.0

    def step(self, epoch: int, seen: int, seconds: float, losses: Mapping[str, float], *, force: bool = False) -> None:
        """Reports a step of ``epoch`` (from 0) after ``seen`` pictures of it."""
        now = time.monotonic()
        if not force and now - self._last < REPORT_EVERY_S:
            return
        self._last = now
        self.report(
            {
                "done": epoch * self.pictures + seen,
                "total": self.recipe.epochs * self.pictures,
                "unit": "pictures",
                "epoch": epoch + 1,
                "epochs": self.recipe.epochs,
                "images_per_s": seen / seconds if seconds > 0 else None,
                "losses": dict(losses),
                "val_accuracy": self.history[-1]["val_accuracy"] if self.history else None,
            }
        )


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak rate at a step from 0: a cosine up from 1/25 over the warm-up, then a cosine down to 0.

    torch's own OneCycleLR divides by zero when the warm-up is one step, as on a handful of pictures.
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return START + (1 - START) * (1 - math.cos(math.pi * (step + 1) / warm)) / 2
    return (1 + math.cos(math.pi * min(1.0, (step - warm + 1) / max(1, steps - warm)))) / 2


def default_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(method: Method, pictures: Pictures, recipe: Recipe, *, work: Path, report: Report) -> list[dict[str, Json]]:
    """Trains ``method.student`` in place, from the newest checkpoint under ``work`` if there is one.

    Returns:
        One row an epoch: mean of each loss, validation accuracy, seconds.

    Raises:
        StageError: A loss is not finite.
    """
    device = default_device()
    network = method.student.to(device)
    method.extra.to(device)
    if method.assistant is not None:
        method.assistant.to(device).eval().requires_grad_(False)
    torch.manual_seed(recipe.seed)
    steps = recipe.epochs * len(_batches(len(pictures.labels), recipe, 0))
    optimiser = torch.optim.AdamW(_groups(network, method.extra, recipe.weight_decay), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps))
    parts: dict[str, Any] = {"network": network, "extra": method.extra, "optimiser": optimiser, "schedule": schedule}
    progress = Progress(report, recipe, len(pictures.labels))
    start = _resume(work, parts, progress)
    for epoch in range(start, recipe.epochs):
        began = time.monotonic()
        losses = _epoch(method, pictures, recipe, epoch, optimiser, schedule, progress, device)
        score = evaluate(network, method.task, pictures.val, pictures.val_labels, batch=4 * recipe.batch)
        seconds = time.monotonic() - began
        progress.history.append({"epoch": epoch + 1, "losses": losses, "val_accuracy": score.value, "seconds": seconds})
        if epoch + 1 < recipe.epochs:
            state = {name: part.state_dict() for name, part in parts.items()}
            rng = {"torch": torch.get_rng_state()}
            save_checkpoint(work, epoch + 1, {**state, "rng": rng, "epoch": epoch + 1, "history": progress.history})
        progress.step(epoch, len(pictures.labels), seconds, losses, force=True)
    return progress.history


def evaluate(
    network: Network, task: Task, pictures: NDArray[np.uint8], labels: NDArray[np.int64], *, batch: int = 128
) -> Accuracy:
    """Accuracy on pictures (M, h, w, 3) uint8; the network is left in evaluation mode."""
    device = next(network.parameters()).device
    network.eval()
    correct = 0
    for start in range(0, len(labels), batch):
        chunk = to_tensor(pictures[start : start + batch]).to(device)
        expected = torch.from_numpy(labels[start : start + batch]).to(device)
        with torch.no_grad():
            correct += task.score(network(chunk), expected).correct
    return Accuracy(correct, len(labels))


# ---------------------------------------------------------------------------------------- helpers


def _epoch(
    method: Method,
    pictures: Pictures,
    recipe: Recipe,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    progress: Progress,
    device: torch.device,
) -> dict[str, float]:
    """One pass; returns the mean of each loss."""
    method.student.train()
    method.extra.train()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    sums: dict[str, float] = {}
    seen, began = 0, time.monotonic()
    for batch in _rendered(method, pictures, recipe, epoch, device):
        with _autocast(device):
            losses = method.losses(batch)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            found = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items())
            raise StageError(f"the loss is not finite in epoch {epoch + 1} ({found}); lower the rate or the knobs")
        optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        seen += len(batch.labels)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(batch.labels)
        progress.step(epoch, seen, time.monotonic() - began, {name: value / seen for name, value in sums.items()})
    return {name: value / seen for name, value in sums.items()}


def _rendered(method: Method, pictures: Pictures, recipe: Recipe, epoch: int, device: torch.device) -> Iterator[Batch]:
    """The epoch's batches, each rendered while the one before it trains."""
    view = epoch % pictures.view_count
    small_size, large_size = method.student.image_size, method.large if method.reads_large else None

    def make(indices: NDArray[np.int64]) -> Batch:
        stored = torch.from_numpy(pictures.train[indices]).to(device)
        drawn = pictures.views.draw(indices, view)
        small = render(stored, drawn, small_size)
        large = render(stored, drawn, large_size) if large_size is not None else None
        targets = None
        if pictures.targets is not None:
            targets = torch.from_numpy(pictures.targets[view, indices].astype(np.float32)).to(device)
        return Batch(small, large, torch.from_numpy(pictures.labels[indices]).to(device), targets)

    batches = _batches(len(pictures.labels), recipe, epoch)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="render") as pool:
        coming = pool.submit(make, batches[0])
        for following in batches[1:]:
            batch, coming = coming.result(), pool.submit(make, following)
            yield batch
        yield coming.result()


def _batches(count: int, recipe: Recipe, epoch: int) -> list[NDArray[np.int64]]:
    """Picture numbers by step. A last batch too small for batch statistics joins the one before it."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(count)
    cuts = list(range(recipe.batch, count, recipe.batch))
    if cuts and count - cuts[-1] < max(2, recipe.batch // 8):
        cuts.pop()
    return [np.sort(part) for part in np.split(order, cuts)]


def _groups(network: Network, extra: nn.Module, decay: float) -> list[dict[str, Any]]:
    parameters = [p for module in (network, extra) for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _resume(work: Path, parts: Mapping[str, Any], progress: Progress) -> int:
    state = load_checkpoint(work)
    if state is None:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["rng"]["torch"])
    progress.history.extend(state["history"])
    return int(state["epoch"])


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, h, w, 3) uint8 -> (N, 3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def large_store_size(large: Size) -> Size:
    """The size that training pictures are stored at, a little over the large crop's (8/7, as 256 is to 224)."""
    return Size(math.ceil(large.height * 8 / 7), math.ceil(large.width * 8 / 7))
