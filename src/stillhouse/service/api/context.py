"""What every route works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stillhouse.search.domain import Json
from stillhouse.search.forecast import Forecast
from stillhouse.search.owner import NOBODY, Owner
from stillhouse.search.ports import ArtifactStore
from stillhouse.service.accounts import Caller
from stillhouse.service.api.kept import Kept, Make, dumped
from stillhouse.service.api.paging import LIST_AGE_S
from stillhouse.service.api.pulse import Pulse
from stillhouse.service.checkpoints import Checkpoints
from stillhouse.service.db.lists import Lists
from stillhouse.service.db.tenant import TenantLedger
from stillhouse.service.resumable import Uploads
from stillhouse.service.room import NoRoomError, lack_of_room
from stillhouse.service.settings import Settings
from stillhouse.service.stores import open_checkpoints


@dataclass(frozen=True)
class Context:
    """The ledger as the caller may see it, stores and settings; answers kept, and what jobs still need."""

    ledger: Lists
    store: ArtifactStore
    settings: Settings
    kept: Kept
    forecast: Forecast
    pulse: Pulse
    checkpoints: Checkpoints
    owner: Owner = NOBODY

    @classmethod
    def whole(cls, ledger: Lists, store: ArtifactStore, settings: Settings) -> Context:
        """The application's own, which sees all tenants."""
        checkpoints = open_checkpoints(settings)
        return cls(ledger, store, settings, Kept(), Forecast(ledger), Pulse(ledger), checkpoints)

    def seen_by(self, caller: Caller) -> Context:
        """What a caller may see, and make within the quotas of their key."""
        if caller.tenant is None:
            return self
        limits = (self.settings.max_live_jobs_per_key, self.settings.max_dataset_bytes_per_key)
        owner = Owner(caller.tenant, caller.key_id, *limits)
        return replace(self, ledger=TenantLedger(self.ledger, owner), owner=owner)

    def space(self) -> Callable[[int], None]:
        """Raises QuotaError for more bytes than the caller's key has left for data sets beside its open uploads."""
        used = 0
        if self.owner.key is not None and self.owner.max_dataset_bytes is not None:
            offers = Uploads(self.settings.uploads, most_bytes=self.settings.max_upload_bytes)
            used = self.ledger.dataset_bytes(self.owner.key) + offers.offered_bytes(self.owner.key)
        return partial(self.owner.check_dataset_bytes, used)

    def check_room(self, more_bytes: int = 0) -> None:
        """Raises NoRoomError unless so many bytes more leave free on the home's disk what must be."""
        lack = lack_of_room(self.settings, more_bytes)
        if lack is not None:
            raise NoRoomError(lack)

    async def told(
        self,
        request: Request,
        job_id: str,
        make: Make,
    ) -> Response:
        """An answer about a job that the caller may see, kept once the job is done; raises NotFoundError.

        Args:
            request: Says who asks.
            job_id: The job.
            make: Gives the body and headers.
        """
        tenant = request.state.caller.tenant
        mark = await self.pulse.of_job(self.ledger, job_id, tenant=tenant)
        if mark[0] == "done":
            at_hand = partial(self.pulse.job_at_hand, tenant, job_id)
            return await self.kept.given(request, mark, make, at_hand=at_hand)

        def fresh() -> Response:
            body, headers = make()
            return Response(dumped(body), media_type="application/json", headers=dict(headers))

        return await self.kept.made(fresh)

    async def listed(self, request: Request, make: Make) -> Response:
        """A page of a list of the caller's jobs, or of what they made: kept, and made anew while it is asked for.

        Args:
            request: Says who asks.
            make: Gives the body and headers.
        """
        tenant = request.state.caller.tenant
        mark = await self.pulse.of_lists(self.ledger, tenant=tenant)
        at_hand = partial(self.pulse.jobs_at_hand, tenant)
        return await self.kept.given(request, mark, make, age_s=LIST_AGE_S, at_hand=at_hand)

    def catalogue(self) -> Mapping[str, Json]:
        """What the workers published; 503 before they have."""
        data = self.ledger.catalogue()
        if data is None:
            raise HTTPException(503, "no worker has published its catalogue yet; start the controller once")
        return data


def told_bytes(request: Request) -> int:
    """Bytes of the body, as far as the sender tells them beforehand."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isdecimal() else 0


async def context(request: Request) -> Context:  # not in a thread: it does nothing that waits
    """The caller's context: the gate has said who that is."""
    whole: Context = request.app.state.context
    return whole.seen_by(request.state.caller)


Ctx = Annotated[Context, Depends(context)]
