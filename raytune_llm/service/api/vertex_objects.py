"""Tuning jobs as Vertex AI's API shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from raytune_llm.service.api.job_objects import named
from raytune_llm.service.api.vertex_requests import ADAPTER_SIZES
from raytune_llm.service.controller import Job
from raytune_llm.service.records import AUTO, State

STATES = {
    State.validating_files: "JOB_STATE_PENDING",
    State.queued: "JOB_STATE_QUEUED",
    State.running: "JOB_STATE_RUNNING",
    State.paused: "JOB_STATE_PAUSED",
    State.succeeded: "JOB_STATE_SUCCEEDED",
    State.failed: "JOB_STATE_FAILED",
    State.cancelled: "JOB_STATE_CANCELLED",
}
FAILED_PRECONDITION, INTERNAL = 9, 13
"""Codes of google.rpc.Status."""


class TuningJobObject(BaseModel):
    """A tuning job. Fields that don't apply are left out."""

    name: str
    state: str
    createTime: str
    startTime: str | None = None
    endTime: str | None = None
    updateTime: str
    baseModel: str
    supervisedTuningSpec: dict[str, Any]
    tunedModelDisplayName: str | None = None
    description: str | None = None
    labels: dict[str, str] | None = None
    tunedModel: dict[str, str] | None = None
    tuningDataStats: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class TuningJobList(BaseModel):
    tuningJobs: list[TuningJobObject]
    nextPageToken: str


def tuning_job(job: Job, project: str, location: str) -> TuningJobObject:
    request, status, extra = job.request, job.status, job.request.extra
    changes = [at for _, at in status.changes]
    started = next((at for state, at in status.changes if state == State.running.value), None)
    model = named(job)
    return TuningJobObject(
        name=f"projects/{project}/locations/{location}/tuningJobs/{request.id}",
        state=STATES[status.state],
        createTime=_time(request.created),
        startTime=None if started is None else _time(started),
        endTime=_time(changes[-1]) if status.state.is_final and changes else None,
        updateTime=_time(max([request.created, *changes])),
        baseModel=request.model,
        supervisedTuningSpec=extra.get("supervisedTuningSpec") or _spec(job),
        tunedModelDisplayName=extra.get("tunedModelDisplayName") or request.suffix,
        description=extra.get("description"),
        labels=extra.get("labels"),
        tunedModel=None if model is None else {"model": model, "endpoint": model},
        tuningDataStats=_stats(job),
        error=_error(job),
    )


def _spec(job: Job) -> dict[str, Any]:
    """Of a job that was created in OpenAI's words."""
    request = job.request
    values = {key: value for key, value in request.hyperparameters.items() if value != AUTO}
    sizes = {size: name for name, size in ADAPTER_SIZES.items()}
    given = {
        "epochCount": str(values["n_epochs"]) if "n_epochs" in values else None,
        "learningRateMultiplier": values.get("learning_rate_multiplier"),
        "adapterSize": sizes.get(int(values.get("adapter_size", 0))),
        "batchSize": str(values["batch_size"]) if "batch_size" in values else None,
    }
    spec = {
        "trainingDatasetUri": request.training.name,
        "validationDatasetUri": None if request.validation is None else request.validation.name,
        "hyperParameters": {key: value for key, value in given.items() if value is not None},
    }
    return {key: value for key, value in spec.items() if value is not None}


def _stats(job: Job) -> dict[str, Any] | None:
    """Counts, as texts: Google's JSON has no 64-bit integers."""
    estimate, result = job.status.estimate, job.status.result
    if estimate is None:
        return None
    tokens = estimate.tokens if result is None else result.trained_tokens
    stats = {
        "tuningDatasetExampleCount": str(estimate.records),
        "totalBillableTokenCount": str(tokens),
        "tuningStepCount": None if result is None else str(result.step),
    }
    return {"supervisedTuningDataStats": {key: value for key, value in stats.items() if value is not None}}


def _error(job: Job) -> dict[str, Any] | None:
    error = job.status.error
    if error is None:
        return None
    return {"code": INTERNAL if error.param is None else FAILED_PRECONDITION, "message": error.message}


def _time(seconds: float) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
