"""What every route works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from stillhouse.search.domain import Json
from stillhouse.search.forecast import Forecast
from stillhouse.search.ports import ArtifactStore, Ledger
from stillhouse.service.settings import Settings


@dataclass(frozen=True)
class Context:
    """The ledger, the store and the settings."""

    ledger: Ledger
    store: ArtifactStore
    settings: Settings

    @cached_property
    def forecast(self) -> Forecast:
        """Tells what running jobs still need."""
        return Forecast(self.ledger)

    def catalogue(self) -> Mapping[str, Json]:
        """What the workers published; 503 before they have."""
        data = self.ledger.catalogue()
        if data is None:
            raise HTTPException(503, "no worker has published its catalogue yet; start the controller once")
        return data


def context(request: Request) -> Context:
    """The application's context."""
    found: Context = request.app.state.context
    return found


Ctx = Annotated[Context, Depends(context)]
