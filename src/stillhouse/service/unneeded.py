"""Removes what nobody needs any more: stages of the ledger first, then the files that nothing names.

Rows go first, in short transactions, so that whoever asks for such a stage again gets a new one. Only then those files
go that no row names any more and that were not put for a while: what is about to be named has just been put. A process
that dies in between leaves files that nothing names, and the next run finds them: a run looks at what there is and
remembers nothing of the last one.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from stillhouse.search.errors import ConflictError
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.db.unused import Forgets, StageLine, unused
from stillhouse.service.resumable import Uploads
from stillhouse.service.settings import Settings
from stillhouse.service.store import CLAIM, claimed, is_sha256, owner_of, remove_older
from stillhouse.service.stores import open_checkpoints

GRACE_S = 3600.0
"""A file that was put or written less than so long ago is never removed: the row that names it may be on its way."""
_LINES, _STAGES, _NAMES = 2000, 200, 500
"""Rows and names that one transaction reads or removes."""
_LOOKS = 3
"""How often in a run stages are looked for when jobs come and go meanwhile."""
Item = TypeVar("Item")
_ATTEMPT_LOG = re.compile(r"att_[0-9a-f]+\.log")


@dataclass(frozen=True)
class Removed:
    """Something that was removed: what it is, how many of them, and their bytes."""

    what: str
    count: int = 0
    size: int = 0


@dataclass
class Sum:
    """All that was removed, by what it is."""

    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)

    def add(self, removed: Removed) -> None:
        """Adds it."""
        if removed.count:
            self.counts[removed.what] += removed.count
            self.sizes[removed.what] += removed.size

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.sizes.total()

    def __bool__(self) -> bool:
        return self.counts.total() > 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.counts.items()) + f" ({self.size} bytes)"


class Collector:
    """Finds and removes what nobody needs any more. Any number may be at it at once, beside controllers and workers.

    Args:
        settings: Where uploads, logs, work and caches lie.
        ledger: Says what is needed.
        store: Holds the artifacts.
        clock: Unix seconds.
    """

    def __init__(
        self, settings: Settings, ledger: Forgets, store: ArtifactStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._ledger, self._store, self._clock = settings, ledger, store, clock
        self._checkpointed = open_checkpoints(settings)

    def run(self, *, older_than_s: float, dry_run: bool = False, claim: bool = False) -> Iterator[Removed]:
        """Removes it piece by piece, so that the caller may pause between two; each piece is short.

        Args:
            older_than_s: Seconds since the last use.
            dry_run: Tells what would be removed, and removes nothing.
            claim: Takes home and store for this ledger's where they belong to none. An empty store needs no asking.

        Raises:
            ConflictError: The home or the store belongs to another ledger, or to none; nothing is removed.
            AwayError: The database does not answer.
            OSError, StillhouseError: The store, or a folder, cannot be written.
        """
        self._check_whose(claim=claim, dry_run=dry_run)
        now = self._clock()
        before = now - older_than_s
        sweep = _Sweep(min(before, now - GRACE_S), dry_run)
        stages, gone = yield from self._stages(before, dry_run)
        yield from self._artifacts(stages, sweep)
        yield from self._checkpoints(dry_run)
        holders = self._ledger.holders()
        zips = (path for path in _listed(self._settings.uploads, "*.zip") if path.stem not in holders.sources)
        yield from sweep.files("uploads", zips)
        if not dry_run:
            Uploads(self._settings.uploads, most_bytes=self._settings.max_upload_bytes).clean()
        would_go = gone if dry_run else set[str]()  # they are still there
        yield from self._logs(sweep, {each.id for key in would_go for each in self._ledger.attempts(key)})
        folders = [path for path in _listed(self._settings.work) if is_sha256(path.name)]
        known = self._ledger.stages(path.name for path in folders).keys() - would_go
        yield from sweep.folders("work folders", (path for path in folders if path.name not in known))
        caches = (path for path in _listed(self._settings.cache) if is_sha256(path.name))
        yield from sweep.folders("picture caches", (path for path in caches if path.name not in holders.pictures))

    def _check_whose(self, *, claim: bool, dry_run: bool) -> None:
        """Nothing is unneeded only because another database does not know it.

        A store with files that belongs to none may be several databases', or another's than this: only the operator
        knows. The home is that of the store, or has a database of its own in it.
        """
        ledger, home = self._ledger.identity(), self._settings.home
        home.mkdir(parents=True, exist_ok=True)
        owner = self._store.owner()
        if owner is None:
            if not claim and next(iter(self._store.listed()), None) is not None:
                raise ConflictError(
                    f"the store holds files and belongs to no database yet, so nothing was removed; if {ledger} is the "
                    "only one that keeps files there, say so once: stillhouse tidy --claim"
                )
            owner = ledger if dry_run else self._store.claim(ledger)
        at_home = owner_of(home / CLAIM) or (ledger if dry_run or owner != ledger else claimed(home / CLAIM, ledger))
        for place, whose in (("the store", owner), (home, at_home)):
            if whose != ledger:
                raise ConflictError(
                    f"{place} belongs to the database {whose}, but this one is {ledger}, so nothing was removed; set "
                    f"STILLHOUSE_DATABASE_URL to that one, or remove the file {CLAIM!r} there if it is gone for ever"
                )

    def _stages(self, before: float, dry_run: bool) -> Generator[Removed, None, tuple[list[StageLine], set[str]]]:
        """Removes stages that were last used before a time; returns those that are left, and the others' keys."""
        gone: set[str] = set()
        lines: list[StageLine] = []
        for _ in range(_LOOKS):
            holders, lines = self._ledger.holders(), []
            while page := self._ledger.stage_lines(after=lines[-1].key if lines else "", limit=_LINES):
                lines += page
                yield Removed("stages")
            found = unused(lines, holders, before=before)
            for batch in _parts(found, _STAGES):
                forgotten: Sequence[str] | None = batch
                if not dry_run:
                    forgotten = self._ledger.forget_stages(batch, mark=holders.mark, before=before)
                if forgotten is None:
                    break
                gone.update(forgotten)
                yield Removed("stages", len(forgotten))
            else:
                break
        return [line for line in lines if line.key not in gone], gone

    def _artifacts(self, stages: Iterable[StageLine], sweep: _Sweep) -> Iterator[Removed]:
        """Removes old artifacts that none of these stages, no model, no job and no kept bundle names."""
        named = {sha256 for line in stages for sha256 in line.files}
        for note in _listed(self._settings.cache / "bundles"):
            if is_sha256(note.name):
                # It says which artifact is a bundle; without it the bundle is made again.
                try:
                    bundle = note.read_text(encoding="utf-8")
                except FileNotFoundError:  # another run was first
                    continue
                removed = sweep.file("bundles", note)
                if removed is None:
                    named.add(bundle)
                else:
                    yield removed
        listed = self._store.listed()
        while part := list(islice(listed, _NAMES)):
            due = {item.sha256: item for item in part if item.put_at < sweep.old and item.sha256 not in named}
            for sha256 in due.keys() - self._ledger.named_files(due.keys()):
                if self._ledger.named_files([sha256]):
                    continue  # by now: the caller may have paused for long
                size = due[sha256].size if sweep.dry_run else self._store.remove(sha256, before=sweep.old)
                yield Removed("artifacts", int(sweep.dry_run or size > 0), size)
            yield Removed("artifacts")

    def _checkpoints(self, dry_run: bool) -> Iterator[Removed]:
        """Removes those of stages that have ended, or that are not there: nobody goes on from them."""
        for part in _parts(list(self._checkpointed.stages()), _NAMES):
            stages = self._ledger.stages(part)
            for key in part:
                if key not in stages or stages[key].state in ("done", "failed"):
                    size = self._checkpointed.size(key)
                    if not dry_run:
                        self._checkpointed.drop(key)
                    yield Removed("checkpoints", 1, size)
            yield Removed("checkpoints")

    def _logs(self, sweep: _Sweep, would_go: Collection[str]) -> Iterator[Removed]:
        """Removes the logs of attempts that the ledger does not know, or that would go."""
        logs = [path for path in _listed(self._settings.logs) if _ATTEMPT_LOG.fullmatch(path.name)]
        for part in _parts(logs, _NAMES):
            known = self._ledger.known_attempts({path.stem for path in part}).difference(would_go)
            yield from sweep.files("logs", (path for path in part if path.stem not in known))


@dataclass(frozen=True)
class _Sweep:
    """Removes files and folders that were not written since a time (Unix seconds)."""

    old: float
    dry_run: bool

    def file(self, what: str, path: Path) -> Removed | None:
        """Removes a file; None when it is younger, or not there."""
        try:
            known = path.stat()
        except FileNotFoundError:
            return None
        if known.st_mtime >= self.old:
            return None
        if not self.dry_run and remove_older(path, before=self.old, aside=path.parent) < known.st_size:
            return None  # it was written anew just now
        return Removed(what, 1, known.st_size)

    def files(self, what: str, paths: Iterable[Path]) -> Iterator[Removed]:
        """Removes files."""
        yield from (self.file(what, path) or Removed(what) for path in paths)

    def folders(self, what: str, paths: Iterable[Path]) -> Iterator[Removed]:
        """Removes folders in which nothing is younger."""
        for path in paths:
            try:
                known = [each.lstat() for each in (path, *path.rglob("*"))]
            except FileNotFoundError:  # somebody works in it, or another run was first
                continue
            if max(each.st_mtime for each in known) < self.old:
                if not self.dry_run:
                    shutil.rmtree(path, ignore_errors=True)
                yield Removed(what, 1, sum(each.st_size for each in known[1:]))
            yield Removed(what)


def _listed(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
