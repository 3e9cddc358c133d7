"""On whose behalf something is stored. The planner passes it by; the ledger keeps tenants apart with it."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.search.errors import QuotaError

DEFAULT_TENANT = "default"
"""Whose everything is that the command line, or an open server, makes."""


@dataclass(frozen=True)
class Owner:
    """Who a data set or a job is made for, and how much they may have.

    Attributes:
        tenant: Whose it will be.
        key: Id of the API key that made it; None for the command line and an open server.
        max_live_jobs: Jobs of this key that may be queued or running at once; None for any number.
        max_dataset_bytes: Bytes that this key's uploads may have together; None for any number.
    """

    tenant: str = DEFAULT_TENANT
    key: str | None = None
    max_live_jobs: int | None = None
    max_dataset_bytes: int | None = None

    def check_live_jobs(self, live: int) -> None:
        """Raises QuotaError when no further job may be started beside these."""
        if self.max_live_jobs is not None and live >= self.max_live_jobs:
            raise QuotaError(
                f"this key may have {self.max_live_jobs} jobs queued or running, and has {live}; wait until one ends, "
                "or cancel one",
                passes=True,
            )

    def check_dataset_bytes(self, used: int, more: int) -> None:
        """Raises QuotaError when so many more bytes do not fit beside those that are used."""
        if self.max_dataset_bytes is not None and used + more > self.max_dataset_bytes:
            raise QuotaError(
                f"this key's data sets may have {self.max_dataset_bytes} bytes together; {used} are used, and this one "
                f"would add {more}; send fewer pictures, or ask the operator for more"
            )


NOBODY = Owner()
"""The command line, or anybody at an open server."""
