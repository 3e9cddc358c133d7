"""Which stages nothing uses any more, and what a ledger gives so that they can be forgotten.

A stage is kept while any of these holds:

- a data set is made by it, or a trial of a job that exists names it;
- it runs;
- a job is live, and the stage reads that job's pictures, or none: the job may take it up in its next step (a teacher, a
  comparison, a cost measured on an untrained network);
- its last use is recent: the end of its last attempt, or the time when it was first asked for;
- a stage that is kept reads it, or may go on from it (``resume``).

So what no trial names (costs of untrained networks, comparisons, readings of the test split, which are all in the job's
models) is a cache that age alone empties.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from stillhouse.search.domain import Json, StageKind
from stillhouse.search.ports import Ledger
from stillhouse.service.db.lists import Mark


@dataclass(frozen=True)
class StageLine:
    """A stage as far as it matters to what is kept.

    Attributes:
        key: Its key.
        kind: Its kind.
        state: Its state.
        used_at: Unix seconds of its last use.
        reads: Keys of the stages that it reads or may go on from.
        files: sha256 of the artifacts that it made or starts from.
    """

    key: str
    kind: str
    state: str
    used_at: float
    reads: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Holders:
    """What holds on to stages and files.

    Attributes:
        mark: Equal as long as no job came, went, started, ended or was tried again.
        stages: Keys that data sets and trials name.
        live: Keys of the ingest stages of live jobs.
        pictures: Digests of the pictures of data sets that were read: names in the cache.
        sources: Digests of what data sets were or will be read from: names of uploads.
    """

    mark: Mark
    stages: frozenset[str]
    live: frozenset[str]
    pictures: frozenset[str]
    sources: frozenset[str]


class Forgets(Ledger, Protocol):
    """A ledger that can forget stages."""

    def identity(self) -> str:
        """The ledger's own name, made up at random when it is first asked for: who removes files must know whose."""

    def stage_lines(self, *, after: str = "", limit: int) -> list[StageLine]:
        """Stages in order of key, from the one after ``after`` on."""

    def holders(self) -> Holders:
        """What holds on to stages and files now. Read it before the stages."""

    def forget_stages(self, keys: Collection[str], *, mark: Mark, before: float) -> list[str] | None:
        """Removes stages with their attempts, so that whoever asks for one again gets a new, pending one.

        Those are left that run, that a data set is made by, or that were used meanwhile.

        Args:
            keys: Found to be ``unused``; at most some hundred.
            mark: Of the holders that they were found with.
            before: Unix seconds of the last use.

        Returns:
            Keys of those removed; None, and nothing is removed, when something has happened to jobs since: look again.
        """

    def named_files(self, among: Collection[str]) -> set[str]:
        """Those of the artifacts (at most some hundred sha256) that a model or a job names, whatever stages do."""

    def known_attempts(self, among: Collection[str]) -> set[str]:
        """Those of the attempts (at most some hundred ids) that exist."""


def unused(lines: Iterable[StageLine], holders: Holders, *, before: float) -> list[str]:
    """Keys of the stages that nothing uses, and that were last used before a time (Unix seconds)."""
    stages = {line.key: line for line in lines}
    kept = {
        key
        for key, line in stages.items()
        if key in holders.stages or line.state == "running" or line.used_at >= before or key in holders.live
    }
    if holders.live:
        kept |= _wanted(stages, holders.live)
    todo = list(kept | holders.stages)
    while todo:
        line = stages.get(todo.pop())
        for key in () if line is None else line.reads:
            if key not in kept:
                kept.add(key)
                todo.append(key)
    return [key for key in stages if key not in kept]


def _wanted(stages: Mapping[str, StageLine], live: frozenset[str]) -> set[str]:
    """Keys of the stages that read the pictures of a live job, or of no data set that is known."""
    found: dict[str, frozenset[str]] = {}

    def sources(start: str) -> frozenset[str]:
        """Keys of the ingest stages that a stage comes from."""
        todo = [start]
        while todo:
            line = stages[todo[-1]]
            missing = [key for key in line.reads if key in stages and key not in found]
            if missing:
                todo += missing
                continue
            own = frozenset({line.key}) if line.kind == str(StageKind.INGEST) else frozenset()
            found[todo.pop()] = own.union(*(found.get(key, frozenset()) for key in line.reads))
        return found[start]

    return {key for key in stages if not (read := sources(key)) or read & live}


def stage_reads(inputs: Mapping[str, Json] | None, resume: str | None) -> tuple[str, ...]:
    """Keys of the stages that a plan reads or may go on from."""
    return (*(inputs or {}).values(), *([resume] if resume else []))


def stage_files(artifacts: Mapping[str, Json] | None, checkpoint: str | None) -> tuple[str, ...]:
    """The sha256 of the artifacts that a stage made or starts from."""
    return (*(artifacts or {}).values(), *([checkpoint] if checkpoint else []))
