"""Bundles of models: made once, kept in the artifact store, found again by what they are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from stillhouse.search.domain import Deployment, Json, content_key
from stillhouse.search.errors import CorruptArtifactError, NotFoundError, StillhouseError
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.service.report import front_entry
from stillhouse.service.settings import Settings

VERSION = 1
"""Goes up when the same model gives another bundle."""
LONGEST_S = 120.0
_ONE_AT_A_TIME = threading.Lock()


class Bundles:
    """Gives bundles.

    Args:
        ledger: Knows the models.
        store: Holds their files, and the bundles.
        settings: Where bundles are remembered.
    """

    def __init__(self, ledger: Ledger, store: ArtifactStore, settings: Settings) -> None:
        self._ledger, self._store, self._settings = ledger, store, settings

    def sha256(self, deployment: Deployment) -> str:
        """The artifact that is a model's bundle; made now if it was not.

        Raises:
            StillhouseError: It cannot be made.
        """
        order = self._order(deployment)
        kept = self._settings.cache / "bundles" / content_key([VERSION, deployment.onnx_sha256, order])
        with _ONE_AT_A_TIME:
            if kept.exists() and self._store.has(known := kept.read_text(encoding="utf-8")):
                return known
            kept.parent.mkdir(parents=True, exist_ok=True)
            made = self._made(
                {**order, "onnx": str(self._store.path(deployment.onnx_sha256))}, kept.with_suffix(".zip")
            )
            fresh = kept.with_suffix(f".{os.urandom(4).hex()}")
            fresh.write_text(made, encoding="utf-8")
            fresh.replace(kept)
            return made

    def _made(self, order: dict[str, Json], draft: os.PathLike[str]) -> str:
        path = self._settings.cache / "bundles" / draft
        try:
            done = subprocess.run(
                [sys.executable, "-m", "stillhouse.service.bundling"],
                input=json.dumps({**order, "out": str(path)}),
                capture_output=True,
                text=True,
                check=False,
                timeout=LONGEST_S,
            )
            if done.returncode != 0:
                raise StillhouseError(f"the bundle cannot be made: {done.stderr.strip()[-1000:]}")
            return self._store.put(path)
        finally:
            path.unlink(missing_ok=True)

    def _order(self, deployment: Deployment) -> dict[str, Json]:
        """What the bundle is made of, but for the place of the ONNX file."""
        spec = self._ledger.job(deployment.job_id).spec
        classes = list(self._ledger.dataset(spec.dataset).summary.get("classes", ()))
        return {
            "labels": classes[: spec.classes] if spec.classes else classes,
            "preprocess": dict(deployment.preprocess),
            "card": front_entry(deployment, file="model.onnx"),
            "pictures": self._source(deployment, spec.dataset, spec.classes, str(spec.fit), spec.colour),
        }

    def _source(
        self, deployment: Deployment, dataset_id: str, classes: int | None, fit: str, colour: str
    ) -> dict[str, Json] | None:
        """Where the data set's pictures are; None where they are not here."""
        stage = self._ledger.stages([self._ledger.dataset(dataset_id).stage_key])
        result = next(iter(stage.values())).result if stage else None
        if result is None:
            return None
        try:
            files = {name: str(self._store.path(result.artifacts[name])) for name in ("pictures", "manifest")}
        except (KeyError, NotFoundError, CorruptArtifactError):
            return None
        size, cache = str(deployment.candidate.image_size), str(self._settings.cache)
        return {**files, "cache": cache, "size": size, "fit": fit, "colour": colour, "classes": classes}
