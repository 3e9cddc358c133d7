"""The bundle that a user downloads: one zip with the ONNX file and all that is needed to run and to check it.

The same parts make the same bytes: members stand in a fixed order, without times.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.export.measure import logits_of
from stillhouse.search.domain import Json
from stillhouse.search.errors import StageError

EXAMPLE = Path(__file__).with_name("bundle_example.py")
_TIME = (1980, 1, 1, 0, 0, 0)
_FIGURES = (
    ("macs", "multiply-accumulates"),
    ("params", "parameters"),
    ("model_bytes", "bytes of the ONNX file"),
    ("image_bytes", "mean bytes of a picture as sent"),
    ("latency_ms", "median latency of one picture, ms"),
    ("latency_p95_ms", "95th percentile of latency, ms"),
    ("memory_bytes", "peak memory of inference, bytes"),
)


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of.

    Attributes:
        onnx: The file.
        labels: Class names by output index.
        preprocess: The chain that a device runs before the graph.
        card: The model as an entry of ``front.json``.
        pictures: (N, h, w, C) uint8 whose outputs are put beside them; None for none.
    """

    onnx: Path
    labels: Sequence[str]
    preprocess: Mapping[str, Json]
    card: Mapping[str, Json]
    pictures: NDArray[np.uint8] | None = None


def write_bundle(parts: Parts, path: Path) -> None:
    """Writes the zip."""
    files: dict[str, bytes] = {
        "model.onnx": parts.onnx.read_bytes(),
        "labels.txt": "".join(f"{label}\n" for label in parts.labels).encode(),
        "preprocess.json": _json(parts.preprocess),
        "model.json": _json(parts.card),
        "example.py": EXAMPLE.read_bytes(),
    }
    golden = _golden(parts)
    files |= golden
    files["README.md"] = _card(parts, golden=bool(golden)).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])


def _golden(parts: Parts) -> dict[str, bytes]:
    """Pictures and what the file says of them; nothing where there are none, or where it does not run here."""
    if parts.pictures is None or len(parts.pictures) == 0:
        return {}
    try:
        outputs = logits_of(parts.onnx, parts.pictures, threads=1)
    except StageError:
        return {}
    return {"golden_inputs.npy": _npy(parts.pictures), "golden_outputs.npy": _npy(outputs)}


def _npy(array: NDArray[np.uint8] | NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0))
    return buffer.getvalue()


def _json(value: Mapping[str, Json]) -> bytes:
    return (json.dumps(dict(value), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _where(card: Mapping[str, Json]) -> str:
    told = [card.get("latency_device") or "", card.get("latency_cpu") or "", card.get("latency_runtime") or ""]
    threads = card.get("latency_threads")
    told += [] if threads is None else [f"{threads} {'thread' if threads == 1 else 'threads'}"]
    where = f" ({', '.join(filter(None, told))})" if any(told) else ""
    return f"Latency and memory are those of the machine that measured them{where}; measure again on yours."


def _card(parts: Parts, *, golden: bool) -> str:
    card = parts.card
    interval = f"95 % interval {card['accuracy_low']:.3f} to {card['accuracy_high']:.3f}"
    lines = [
        f"# {card['arch']}, {card['precision']}",
        "",
        f"Tells {len(parts.labels)} classes apart. Pictures of {card['image_size']} pixels go in, the network computes "
        f"at {card['network_size']}.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| accuracy ({card['split']} pictures) | {card['accuracy']:.3f} ({interval}) |",
    ]
    if card.get("accuracy_coded") is not None:
        how = f"{card['codec']}, quality {card['quality']}"
        lines.append(f"| accuracy on pictures as sent ({how}) | {card['accuracy_coded']:.3f} |")
    lines += [f"| {words} | {card[name]:,} |" for name, words in _FIGURES if card.get(name) is not None]
    lines += [
        "",
        _where(card),
        "",
        "## Before the graph",
        "",
        *(f"{number}. {step}" for number, step in enumerate(parts.preprocess.get("steps", ()), start=1)),
        "",
        "Normalisation is inside the graph: bytes go in. Logits come out, in the order of `labels.txt`.",
        "",
        "## Files",
        "",
        "- `example.py picture.jpg` names what a picture shows (numpy, onnxruntime, pillow).",
        "- `model.json` has all figures, `preprocess.json` the chain as values.",
    ]
    if golden:
        lines.append(
            "- `golden_inputs.npy` are validation pictures; the model must answer `golden_outputs.npy`, nearly."
        )
    return "\n".join(lines) + "\n"
