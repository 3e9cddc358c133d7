"""The errors that Stillhouse raises on purpose.

::

    StillhouseError
    +-- UserError            the request cannot be met as it stands; the message says what to do
    |   +-- BudgetError      a limit is malformed
    |   +-- InfeasibleError  a well-formed budget that no candidate can meet
    |   +-- DatasetError     the pictures or labels cannot be used; carries one fault a file
    |   +-- UnknownNameError a name that no registry or catalogue holds
    |   +-- NotFoundError    no such job, model or data set
    |   +-- ConflictError    an Idempotency-Key used again with another body, a state that forbids
    |   +-- QuotaError       a key has used up what it may have
    +-- StageError           a stage failed for a reason that a retry will not cure
    |   +-- ParityError      the ONNX file and the torch network disagree
    +-- AwayError            the database does not answer now; the same call may do later
    +-- LeaseLostError       this attempt no longer holds its stage; it must stop without committing
    +-- CorruptArtifactError bytes read do not match the hash they are stored under

Every ``UserError`` ends the command line with exit code 2 and the API with a 4xx problem document.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

MOST_NAMES = 20
"""That a message names; of more, only the nearest."""

MOST_FAULTS = 10_000
"""A data set may have millions; whoever reads them has mended the cause long before, and a row must hold them."""


class StillhouseError(Exception):
    """Root of all errors raised on purpose."""


class UserError(StillhouseError):
    """The request cannot be met as it stands; the message says what to do."""


class BudgetError(UserError):
    """A limit of a budget is malformed."""


class InfeasibleError(UserError):
    """A well-formed budget that no candidate can meet."""


class DatasetError(UserError):
    """The pictures or labels cannot be used.

    Args:
        message: What must hold, what came, what to do.
        faults: One line a faulty file, each beginning with the file's name.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults[:MOST_FAULTS])
        if len(faults) > MOST_FAULTS:
            self.faults += (f"and {len(faults) - MOST_FAULTS:,} more",)


class UnknownNameError(UserError):
    """A name that no registry or catalogue holds."""

    @classmethod
    def among(cls, what: str, name: str, known: Iterable[str], listed: str = "") -> UnknownNameError:
        """Builds the message, with the nearest known names as a hint; where none is near, all of them if they are few.

        Args:
            what: Kind of name.
            name: What came.
            known: What there is.
            listed: What lists all of them, where they are many.
        """
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if close:
            hint = f"did you mean {' or '.join(close)}?"
        elif len(names) <= MOST_NAMES:
            hint = f"known: {', '.join(names)}"
        else:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
            hint = f"none of the {len(names)} known ones is like it; the nearest are {', '.join(near)}"
        return cls(f"unknown {what} {name!r}; {hint}" + (f" ({listed} lists all)" if listed else ""))


class NotFoundError(UserError):
    """No such job, model or data set."""


class ConflictError(UserError):
    """The request contradicts what is already stored."""


class QuotaError(UserError):
    """A key has used up what it may have.

    Args:
        message: What it may have, what it has, what to do.
        passes: It frees itself in time, so that the same request can be sent again later.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


class StageError(StillhouseError):
    """A stage failed for a reason that a retry will not cure."""


class ParityError(StageError):
    """The ONNX file and the torch network disagree beyond the tolerance of the precision."""


class AwayError(StillhouseError):
    """The database does not answer now; the same call may do later."""


class LeaseLostError(StillhouseError):
    """This attempt no longer holds its stage; it must stop without committing."""


class CorruptArtifactError(StillhouseError):
    """Bytes read do not match the hash they are stored under."""
