"""What a budget leaves, before a job is made."""

from __future__ import annotations

from fastapi import APIRouter

from stillhouse.search.check import check_request
from stillhouse.search.domain import Json
from stillhouse.search.estimate import estimate_job
from stillhouse.service.api import examples
from stillhouse.service.api.context import Ctx
from stillhouse.service.problems import documented
from stillhouse.service.schemas import JobRequest

router = APIRouter(tags=["estimates"])


@router.post("/estimates", responses={**examples.given(examples.ESTIMATE), **documented(404, 409, 422, 503)})
def create_estimate(body: JobRequest, ctx: Ctx) -> dict[str, Json]:
    """How many candidates fit a budget, which limit binds, and what relaxing each by 10, 25 and 50 % would open.

    The body is that of ``POST /jobs``; ``max_flops`` means 2 x MACs. Nothing is stored and nothing is trained. The data
    set must have been read: 409 before that. Where nothing fits, the answer says so and what to relax.
    """
    spec, catalogue = body.to_spec(), ctx.catalogue()
    dataset = ctx.ledger.dataset(spec.dataset)
    check_request(catalogue, spec)
    return estimate_job(ctx.ledger, catalogue, dataset, spec).to_json()
