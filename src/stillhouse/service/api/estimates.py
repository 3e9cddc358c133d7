"""What a budget leaves, before a job is made."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter

from stillhouse.search.catalogue import Catalogue
from stillhouse.search.check import check_request
from stillhouse.search.domain import Candidate, Cost, Json
from stillhouse.search.errors import ConflictError
from stillhouse.search.estimate import Estimate, estimate
from stillhouse.search.job import DatasetRecord, JobSpec
from stillhouse.search.plan import Planner, measured_cost
from stillhouse.search.ports import Ledger
from stillhouse.search.space import Space
from stillhouse.service.api.context import Ctx
from stillhouse.service.problems import documented
from stillhouse.service.schemas import JobRequest

router = APIRouter(tags=["estimates"])


@router.post("/estimates", responses=documented(404, 422, 503))
def create_estimate(body: JobRequest, ctx: Ctx) -> dict[str, Json]:
    """How many candidates fit a budget, which limit binds, and what relaxing each by 10, 25 and 50 % would open.

    The body is that of ``POST /jobs``. Nothing is stored and nothing is trained; the data set must have been read.
    """
    spec, catalogue = body.to_spec(), ctx.catalogue()
    check_request(catalogue, spec)
    dataset = ctx.ledger.dataset(spec.dataset)
    if dataset.state != "ready":
        raise ConflictError(
            f"a data set must be read before costs can be told, but {dataset.id} is {dataset.state}; "
            + ("wait until it is ready" if dataset.state == "pending" else f"its reason: {dataset.reason}")
        )
    return answer(ctx.ledger, catalogue, dataset, spec).to_json()


def answer(ledger: Ledger, catalogue: Mapping[str, Json], dataset: DatasetRecord, spec: JobSpec) -> Estimate:
    """The estimate of a job on a data set that is ready."""
    space = Space(Catalogue.from_json(catalogue), dataset.summary, spec)
    return estimate(space, _measured(ledger, Planner(spec, dataset.stage_key, space.classes, catalogue), space))


def _measured(ledger: Ledger, planner: Planner, space: Space) -> dict[Candidate, Cost]:
    """What earlier searches measured on the job's device, read only when a limit needs it."""
    if not space.spec.budget.needs_device:
        return {}
    keys = {planner.costing(candidate).last.key: candidate for candidate in space.candidates}
    stages = ledger.stages(keys)
    return {keys[key]: measured_cost(stage.result.metrics) for key, stage in stages.items() if stage.result is not None}
