"""The knowledge cache: a trained network's logits for every view of every training picture.

Views are pure functions of the picture's number, so these outputs, taken once, serve every epoch, student, trial
and job on the data set (Shen & Xing 2021 store crops and soft labels in the same spirit). float16 halves the file; its
step is below 1/256 for logits under 8 in size.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.distill.data.views import Views, render
from stillhouse.distill.loop import REPORT_EVERY_S, Report, default_device
from stillhouse.distill.zoo import Network

BATCH = 64


def write_targets(
    network: Network, train: NDArray[np.uint8], views: Views, count: int, path: Path, *, report: Report
) -> Path:
    """Writes logits (V, N, K) float16 as .npy; a view that was finished before is not computed again.

    Args:
        network: The trained teacher or assistant; reads views at its own picture size.
        train: (N, S, S, 3) uint8.
        views: Draws the crops.
        count: V, views a picture.
        path: The .npy file; a marker beside it says how many views are finished.
        report: Called about twice a second.
    """
    marker = path.with_suffix(".views")
    shape = (count, len(train), network.classes)
    finished = json.loads(marker.read_text()) if marker.exists() and path.exists() else 0
    mode = "r+" if finished else "w+"
    logits = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=None if finished else shape)
    device = default_device()
    network.to(device).eval()
    began, last = time.monotonic(), 0.0
    for view in range(finished, count):
        for start in range(0, len(train), BATCH):
            indices = np.arange(start, min(start + BATCH, len(train)))
            crops = render(torch.from_numpy(train[indices]).to(device), views.draw(indices, view), network.image_size)
            with torch.no_grad():
                logits[view, indices] = network(crops).float().cpu().numpy().astype(np.float16)
            now = time.monotonic()
            if now - last > REPORT_EVERY_S:
                last = now
                done = (view - finished) * len(train) + int(indices[-1]) + 1
                report(
                    {
                        "done": finished * len(train) + done,
                        "total": count * len(train),
                        "unit": "pictures",
                        "images_per_s": done / (now - began),
                    }
                )
        logits.flush()
        fresh = marker.with_suffix(".tmp")
        fresh.write_text(json.dumps(view + 1))
        fresh.replace(marker)
    return path
