"""Latency, memory and predictions of an ONNX file by onnxruntime on this machine.

Latency and memory are read in a process of its own, ``python -m stillhouse.export.measure``, which imports numpy and
onnxruntime alone: no thread pool of torch disturbs it, and its memory is the model's. This module must therefore not
import torch.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stillhouse.search.domain import Fit, Json, Size
from stillhouse.search.errors import StageError

WARM_UP_RUNS, WARM_UP_S = 10, 0.2
LEAST_RUNS, LEAST_S, MOST_RUNS, MOST_S = 50, 0.5, 400, 5.0
BATCH = 64
RUNTIME = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"


@dataclass(frozen=True)
class Probe:
    """What the probe process found.

    Attributes:
        latency_ms, latency_p95_ms: Median and 95th percentile of one picture.
        memory_bytes: Growth of the peak resident set, from the bare runtime to after the runs: the model loaded, its
            buffers, and inference.
        runs: Timed runs.
        threads: Threads onnxruntime computes with; the process is pinned to as many cores.
        cores: The cores it was pinned to; empty where the system cannot pin.
        runtime: onnxruntime's version and provider.
        host: Facts about the machine.
    """

    latency_ms: float
    latency_p95_ms: float
    memory_bytes: int
    runs: int
    threads: int
    cores: tuple[int, ...]
    runtime: str
    host: dict[str, Json]

    def figures(self) -> dict[str, Json]:
        """As a stage tells them."""
        names = ("latency_ms", "latency_p95_ms", "memory_bytes", "runs", "threads", "runtime")
        told = {name: getattr(self, name) for name in names}
        return {**told, "host": {**self.host, "pinned_cores": list(self.cores)}}


def probe(onnx: Path, *, threads: int) -> Probe:
    """Measures latency (batch 1) and memory in a fresh process.

    Raises:
        StageError: The model does not run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.export.measure", str(onnx), str(threads)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode != 0:
        raise StageError(f"{onnx.name} cannot be measured: {done.stderr.strip()[-1000:]}")
    data = json.loads(done.stdout)
    return Probe(**{**data, "cores": tuple(data["cores"])})


def logits_of(onnx: Path, pictures: NDArray[np.uint8], *, threads: int) -> NDArray[np.float32]:
    """Logits (N, K) of pictures (N, h, w, C) uint8, in batches."""
    session = open_session(onnx, threads)
    name = session.get_inputs()[0].name
    parts = [
        session.run(None, {name: np.ascontiguousarray(pictures[start : start + BATCH])})[0]
        for start in range(0, len(pictures), BATCH)
    ]
    return np.concatenate(parts)


def predict(onnx: Path, pictures: NDArray[np.uint8], *, threads: int) -> NDArray[np.int64]:
    """Top class (N,) of pictures (N, h, w, C) uint8."""
    top: NDArray[np.int64] = logits_of(onnx, pictures, threads=threads).argmax(axis=1).astype(np.int64)
    return top


def open_session(onnx: Path, threads: int) -> Any:  # an onnxruntime.InferenceSession; it ships no types
    """A CPU session with a fixed number of threads.

    The file is loaded from its bytes, so external data, which could name any file, is refused.

    Raises:
        StageError: Not a model that onnxruntime can load.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many types, all of them its own
        raise StageError(f"{onnx.name} cannot be loaded by onnxruntime: {error}") from error


def host_facts() -> dict[str, Json]:
    """What a latency depends on, as far as the system says."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_total(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def preprocess_statement(image_size: Size, fit: Fit, colour: str = "rgb") -> dict[str, Json]:
    """The chain that a device runs before the graph, in words and as values that code can read."""
    resize = {
        Fit.SQUASH: f"resize to {image_size} (height x width)",
        Fit.CROP: f"resize until {image_size} (height x width) is covered, cut the centre",
        Fit.LETTERBOX: f"resize until it fits {image_size} (height x width), fill the border with grey 128",
    }[fit]
    steps = ["decode", "apply EXIF orientation", "convert to RGB", f"{resize}, Pillow BILINEAR (antialiased)"]
    return {
        "steps": steps if colour == "rgb" else [*steps, "convert to L (ITU-R 601 luma)"],
        "fit": str(fit),
        "height": image_size.height,
        "width": image_size.width,
        "colour": "RGB" if colour == "rgb" else colour,
        "resample": "Pillow BILINEAR (antialiased)",
        "fill": 128 if fit is Fit.LETTERBOX else None,
        "input": {"name": "pictures", "dtype": "uint8", "layout": "NHWC"},
        "normalisation": "inside the graph",
    }


# ------------------------------------------------------------------------------- the probe process


def _probe_here(onnx: Path, threads: int) -> Probe:
    cores = _pin(threads)
    _reset_peak()
    before = _peak_bytes()
    session = open_session(onnx, threads)
    entry = session.get_inputs()[0]
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, *entry.shape[1:]), dtype=np.uint8)

    def step() -> None:
        session.run(None, {entry.name: picture})

    times = _timed(step)
    return Probe(
        latency_ms=float(np.median(times)) * 1e3,
        latency_p95_ms=float(np.percentile(times, 95)) * 1e3,
        memory_bytes=max(0, _peak_bytes() - before),
        runs=len(times),
        threads=threads,
        cores=cores,
        runtime=RUNTIME,
        host=host_facts(),
    )


def _timed(step: Callable[[], None]) -> list[float]:
    began, runs = time.perf_counter(), 0
    while runs < WARM_UP_RUNS or time.perf_counter() - began < WARM_UP_S:
        step()
        runs += 1
    times: list[float] = []
    began = last = time.perf_counter()
    while len(times) < MOST_RUNS and (len(times) < LEAST_RUNS or last - began < LEAST_S) and last - began < MOST_S:
        start = time.perf_counter()
        step()
        last = time.perf_counter()
        times.append(last - start)
    return times


def _pin(threads: int) -> tuple[int, ...]:
    if not hasattr(os, "sched_setaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))[-threads:]  # the first core takes most interrupts
    os.sched_setaffinity(0, cores)
    return tuple(cores)


def _reset_peak() -> None:
    """Sets VmHWM back to the present size, where Linux lets a process do so; else the peak of the imports stays."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415 - not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_total() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


if __name__ == "__main__":
    json.dump(asdict(_probe_here(Path(sys.argv[1]), int(sys.argv[2]))), sys.stdout)
