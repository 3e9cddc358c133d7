"""What one trained student becomes: a deployment at each precision and picture quality.

A precision is an ONNX file of its own, with its own latency, memory and bytes; a quality is the same file, read on
pictures that went through the codec at that quality. So a trial yields points along the axes of model bytes, latency
and bytes per picture without training again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from stillhouse.search.domain import PRECISIONS, Accuracy, Cost, Deployment, Json, StageKind, StageResult, content_key
from stillhouse.search.job import JobRecord, JobSpec, StageRecord, TrialRecord
from stillhouse.search.plan import measured_cost, variant_of

CLEARLY = 0.95
"""A file wins on its device when it takes less than this share of the time: what is nearer may be noise."""

Chains = Mapping[str, Sequence[StageRecord]]
"""By precision: the stages, all done, that made and measured the file; the trained precision first."""


def deployed(
    job: JobRecord, trial: TrialRecord, chains: Chains, sent: Mapping[int, float], lost: Mapping[str, str]
) -> list[Deployment]:
    """The deployments of a trial, best precision and quality first.

    Args:
        job: The job.
        trial: A trial of it.
        chains: Its stages.
        sent: Quality -> mean bytes per picture at the trial's size, the best first.
        lost: Precision -> why no file of it could be made.
    """
    full = measured_cost(result_of(chains[PRECISIONS[0]][-1]).metrics)
    costs = {name: measured_cost(result_of(stages[-1]).metrics) for name, stages in chains.items()}
    left_out = dict(lost)
    left_out |= {name: why for name, cost in costs.items() if (why := _loses(job.spec, name, cost, full)) is not None}
    return [
        _deployment(job, trial, precision, quality, stages, replace(trial.cost, image_bytes=count), left_out)
        for precision, stages in chains.items()
        if precision not in left_out
        for quality, count in sent.items()
    ]


def reference(family: Sequence[Deployment], spec: JobSpec) -> Deployment:
    """The deployment that stands for a trial in the search: the first that meets the budget, else the first."""
    return next((item for item in family if not spec.budget.excess(item.cost)), family[0])


def model_id(job_id: str, trial_number: int, stages: Sequence[StageRecord], quality: int | None) -> str:
    """The id of the deployment that these stages made."""
    return "mdl_" + content_key([job_id, trial_number, stages[-1].key, quality])[:12]


def picture_details(metrics: Mapping[str, Json], picture: Mapping[str, Json], judged: str) -> dict[str, Json]:
    """How accurate a file is on pictures as sent, and which are told right by the accuracy that counts.

    Args:
        metrics: Of a measure stage on the validation split.
        picture: ``codec`` and ``quality``.
        judged: ``coded`` or ``plain``.
    """
    coded = metrics["coded"].get(str(picture["quality"]))
    told = coded if judged == "coded" else metrics
    return {
        "picture": dict(picture),
        "judged": judged,
        "coded_val": None if coded is None else coded["accuracy"],
        "right": (told or {}).get("right"),
    }


def failed_stage(stages: Iterable[StageRecord]) -> StageRecord | None:
    """The first stage that failed, if any did."""
    return next((stage for stage in stages if stage.state == "failed"), None)


def result_of(stage: StageRecord) -> StageResult:
    """The result of a stage that is done.

    Raises:
        ValueError: It is not.
    """
    if stage.result is None:
        raise ValueError(f"stage {stage.key} is {stage.state}, not done")
    return stage.result


def exported(stages: Sequence[StageRecord]) -> StageResult:
    """The result of the stage that made the file."""
    return result_of(next(stage for stage in reversed(stages) if stage.plan.kind is StageKind.EXPORT))


def _deployment(
    job: JobRecord,
    trial: TrialRecord,
    precision: str,
    quality: int,
    stages: Sequence[StageRecord],
    cost: Cost,
    left_out: Mapping[str, str],
) -> Deployment:
    export, measure = exported(stages), result_of(stages[-1])
    picture = {"codec": job.spec.codec, "quality": quality}
    return Deployment(
        id=model_id(job.id, trial.number, stages, quality),
        job_id=job.id,
        trial_number=trial.number,
        candidate=trial.candidate,
        cost=cost.merged(measured_cost(measure.metrics)),
        precision=precision,
        validation=Accuracy(**measure.metrics["accuracy"]),
        onnx_sha256=export.artifacts["onnx"],
        preprocess=export.metrics["preprocess"],
        details={
            "method": job.spec.method,
            "variant": variant_of(job.spec.method),
            "seed": job.spec.seed,
            "measured": {
                "device": job.spec.budget.device,
                **{name: measure.metrics.get(name) for name in ("threads", "runs", "runtime", "host")},
            },
            "parity": export.metrics.get("parity"),
            "left_out": dict(left_out),
            **picture_details(measure.metrics, picture, "coded" if job.spec.sends else "plain"),
        },
    )


def _loses(spec: JobSpec, precision: str, cost: Cost, full: Cost) -> str | None:
    """Why a lower precision is not worth having on its device; None when it is.

    Its file is always smaller, so where the job limits or minimises that, or memory, it stays.
    """
    counts = {name for name in ("model_bytes", "memory_bytes") if name in spec.objectives}
    counts |= {name for name in ("model_bytes", "memory_bytes") if getattr(spec.budget, f"max_{name}") is not None}
    if precision == PRECISIONS[0] or counts or (cost.latency_ms or 0) < CLEARLY * (full.latency_ms or 0):
        return None
    return (
        f"{cost.latency_ms:.2f} ms on {spec.budget.device}, where {PRECISIONS[0]} takes {full.latency_ms:.2f} ms, "
        "and the job asks for neither a small file nor little memory"
    )
