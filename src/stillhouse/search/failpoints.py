"""Places where a test makes this process die, stop, fail or wait; inert unless the environment names them.

``STILLHOUSE_FAILPOINTS="commit.before=kill;put.after=enospc@2"`` lists ``PLACE=ACTION``, ``@N`` for its N-th passing
only. ``STILLHOUSE_FAILPOINTS_ONCE`` names a folder in which each action leaves a mark, so that it happens once for all
processes together.

::

    put.before   put.after      an artifact is stored           kill     SIGKILL to this process
    commit.before commit.after  a result is committed           stop     SIGSTOP to this process
    rename.before rename.after  a checkpoint gets its name      enospc   OSError: no space left on device
    epoch.before                a training begins an epoch      raise    RuntimeError
    open.after                  an attempt is open,             sleep:S  waits S seconds
                                but not submitted               note     adds a line to the file "notes" in the
    deployment.after            a deployment is stored,                  folder; as often as it is passed
                                but its trial not moved
    trial.after                 a trial is stored
    accept.before accept.after  the API commits a job
    piece.after                 a piece of an upload is written
    dataset.after               an upload's data set is
                                stored, but nobody told
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE, ONCE = "STILLHOUSE_FAILPOINTS", "STILLHOUSE_FAILPOINTS_ONCE"
_passed: Counter[str] = Counter()


def passing(place: str) -> None:
    """Does what the environment asks for at a place: mostly nothing.

    Raises:
        OSError: For ``enospc``.
        RuntimeError: For ``raise``.
        ValueError: An action that there is not.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    _passed[place] += 1
    for entry in asked.split(";"):
        name, _, action = entry.strip().partition("=")
        action, _, nth = action.partition("@")
        if name != place or (nth and int(nth) != _passed[place]):
            continue
        if action == "note":
            with (Path(os.environ[ONCE]) / "notes").open("a") as notes:
                notes.write(f"{place} {os.getpid()}\n")
        elif _first(entry.strip()):
            _act(place, action)


def _first(entry: str) -> bool:
    """False when another process has done this already."""
    folder = os.environ.get(ONCE)
    if not folder:
        return True
    try:
        os.close(os.open(Path(folder) / entry.replace("/", "_"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _act(place: str, action: str) -> None:
    name, _, value = action.partition(":")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif name == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
    elif name == "raise":
        raise RuntimeError(f"failpoint {place}")
    elif name == "sleep":
        time.sleep(float(value))
    else:
        raise ValueError(
            f"an action must be kill, stop, enospc, raise, note or sleep:SECONDS, but got {action!r} at {place}"
        )
