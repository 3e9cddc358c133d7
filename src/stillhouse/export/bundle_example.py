"""Names what a picture shows: python example.py picture.jpg (needs numpy, onnxruntime and pillow)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def prepare(picture: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """A picture as the model reads it: (1, height, width, channels) uint8."""
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    size = how["width"], how["height"]
    if how["fit"] == "crop":
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    elif how["fit"] == "letterbox":
        picture = ImageOps.pad(picture, size, Image.Resampling.BILINEAR, color=(how["fill"],) * 3)
    else:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    if how["colour"] == "grey":
        picture = picture.convert("L")
    return np.asarray(picture, dtype=np.uint8).reshape(1, how["height"], how["width"], -1)


def main() -> None:
    """Prints the three likeliest classes."""
    how = json.loads((HERE / "preprocess.json").read_text(encoding="utf-8"))
    labels = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
    session = onnxruntime.InferenceSession((HERE / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    with Image.open(sys.argv[1]) as picture:
        logits = session.run(None, {session.get_inputs()[0].name: prepare(picture, how)})[0][0]
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for index in shares.argsort()[::-1][:3]:
        print(f"{shares[index]:6.1%}  {labels[index]}")


if __name__ == "__main__":
    main()
