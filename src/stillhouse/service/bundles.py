"""Bundles of models: made once, kept in the artifact store, found again by what they are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

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
        known = self._known(kept)
        if known is None:
            with _ONE_AT_A_TIME:
                known = self._known(kept) or self._made(order, deployment, kept)
        return known

    def _known(self, kept: Path) -> str | None:
        known = kept.read_text(encoding="utf-8") if kept.exists() else ""
        return known if self._store.has(known) else None

    def _made(self, order: dict[str, Json], deployment: Deployment, kept: Path) -> str:
        """Makes the bundle, and remembers under ``kept`` which artifact it is."""
        kept.parent.mkdir(parents=True, exist_ok=True)
        order = {**order, "onnx": str(self._store.path(deployment.onnx_sha256))}
        mine = os.urandom(4).hex()
        path, note = kept.with_suffix(f".{mine}.zip.tmp"), kept.with_suffix(f".{mine}.tmp")
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
            made = self._store.put(path)
            note.write_text(made, encoding="utf-8")
            note.replace(kept)
            return made
        finally:
            path.unlink(missing_ok=True)
            note.unlink(missing_ok=True)

    def _order(self, deployment: Deployment) -> dict[str, Json]:
        """What the bundle is made of, but for the place of the ONNX file."""
        spec = self._ledger.job(deployment.job_id).spec
        dataset = self._ledger.dataset(spec.dataset)
        classes = list(dataset.summary.get("classes", ()))
        return {
            "labels": classes[: spec.classes] if spec.classes else classes,
            "preprocess": dict(deployment.preprocess),
            "card": front_entry(deployment, file="model.onnx"),
            "pictures": self._source(deployment, dataset.stage_key, spec.classes, str(spec.fit), spec.colour),
        }

    def _source(
        self, deployment: Deployment, ingest_key: str, classes: int | None, fit: str, colour: str
    ) -> dict[str, Json] | None:
        """Where the data set's pictures are; None where they are not here."""
        stage = self._ledger.stages([ingest_key])
        result = next(iter(stage.values())).result if stage else None
        if result is None:
            return None
        try:
            files = {name: str(self._store.path(result.artifacts[name])) for name in ("pictures", "manifest")}
        except (KeyError, NotFoundError, CorruptArtifactError):
            return None
        size, cache = str(deployment.candidate.image_size), str(self._settings.cache)
        return {**files, "cache": cache, "size": size, "fit": fit, "colour": colour, "classes": classes}
