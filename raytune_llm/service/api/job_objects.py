"""Fine-tuning jobs, their events and checkpoints as OpenAI's API shows them, with what this service adds."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from raytune_llm.service.api.backend import Backend
from raytune_llm.service.api.job_requests import METHODS, OPENAI
from raytune_llm.service.api.paging import Item
from raytune_llm.service.api.values import Value
from raytune_llm.service.controller import Job
from raytune_llm.service.records import AUTO, Event, State

TYPES = {method: type for type, method in METHODS.items()}
BYTES_PER_TOKEN = 4
"""Of plain text, roughly."""
CHECKPOINT_METRICS = {
    "train/loss": ("train_loss",),
    "eval/loss": ("valid_loss", "full_valid_loss"),
    "eval/token_accuracy": ("valid_mean_token_accuracy", "full_valid_mean_token_accuracy"),
    "train/token_accuracy": ("train_mean_token_accuracy",),
}
"""OpenAI's names of this project's metrics."""


class ErrorObject(BaseModel):
    code: str
    message: str
    param: str | None


class EstimateObject(BaseModel):
    """What a job is expected to take; null is not known yet."""

    records: int | None
    epochs: float
    tokens: int | None
    trials: int | None
    device_hours: float | None
    is_exact: bool = Field(description="Whether files have been checked: before, it is from their sizes alone.")


class JobObject(Item):
    """A fine-tuning job: OpenAI's fields, then this service's own."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: State
    hyperparameters: dict[str, int | float | str | None]
    method: dict[str, Any]
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    error: ErrorObject | None
    seed: int
    integrations: list[dict[str, Any]]
    metadata: dict[str, str]
    estimated_finish: int | None
    command: str | None = Field(description="What it runs; the same by hand, on the same home, resumes or repeats it.")
    estimate: EstimateObject | None
    queue_position: int | None
    device_hours: float = Field(description="GPU hours so far; hours of a job where there is no GPU.")
    note: str | None = Field(description="Why it waits or is paused, where its owner didn't ask for that.")
    verdict: str | None = Field(description="What the comparison with its base and champion found.")


class EventObject(Item):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


class CheckpointObject(Item):
    """A version that can be asked, whether it is the job's fine_tuned_model or not."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float | None]
    step_number: int


def job_object(backend: Backend, job: Job) -> JobObject:
    request, status = job.request, job.status
    values, result = dict(request.hyperparameters), status.result
    return JobObject(
        id=request.id,
        created_at=request.created,
        finished_at=finished(job),
        model=request.model,
        fine_tuned_model=named(job),
        organization_id=request.owner,
        status=status.state,
        hyperparameters={name: values.get(name) for name in OPENAI},
        method={"type": TYPES[request.method], TYPES[request.method]: {"hyperparameters": values}},
        training_file=request.training.name,
        validation_file=None if request.validation is None else request.validation.name,
        result_files=list(status.result_files),
        trained_tokens=None if result is None else result.trained_tokens,
        error=None if status.error is None else ErrorObject(**vars(status.error)),
        seed=request.seed,
        integrations=[] if request.wandb is None else [{"type": "wandb", "wandb": dict(request.wandb)}],
        metadata=dict(request.metadata),
        estimated_finish=_estimated_finish(job),
        command=shlex.join(status.command) if status.command else None,
        estimate=estimate(backend, job),
        queue_position=job.place,
        device_hours=round(status.device_seconds / 3600, 6),
        note=status.note,
        verdict=None if result is None else result.text,
    )


def named(job: Job) -> str | None:
    """The version that is the job's tuned model; None where there is none, or it wasn't proven better."""
    result = job.status.result
    return result.version if result is not None and result.is_named else None


def finished(job: Job) -> int | None:
    """Unix time, seconds; None for one that hasn't ended."""
    at = job.status.since(job.status.state) if job.status.state.is_final else None
    return None if at is None else int(at)


def estimate(backend: Backend, job: Job) -> EstimateObject | None:
    """Before files are checked from lines and bytes; None where not even these are known."""
    exact = job.status.estimate
    if exact is not None:
        return EstimateObject(**vars(exact), is_exact=True)
    file = backend.file(job.request.training.name, job.request.owner)
    if file is None or job.status.state.is_final:
        return None
    epochs = _most_epochs(backend, job.request.hyperparameters.get("n_epochs"))
    tokens = int(file.num_bytes // BYTES_PER_TOKEN * epochs) if file.num_lines else None
    return EstimateObject(
        records=file.num_lines or None,
        epochs=epochs,
        tokens=tokens,
        trials=None,
        device_hours=None,
        is_exact=False,
    )


def _most_epochs(backend: Backend, value: Value | None) -> float:
    if value is None or value == AUTO:
        return float(max(backend.service.auto.n_epochs))
    return float(value)


def _estimated_finish(job: Job) -> int | None:
    """None unless it runs and is still within what was expected."""
    begun, expected = job.status.since(State.running), job.status.estimate
    if job.status.state is not State.running or begun is None or expected is None:
        return None
    at = begun + expected.device_hours * 3600 - (job.status.device_seconds if job.status.attempt > 1 else 0)
    return int(at) if at > time.time() else None


def event_object(event: Event) -> EventObject:
    return EventObject(
        id=event.id,
        created_at=event.created,
        level=event.level,
        message=event.message,
        type=event.kind,
        data=finite(dict(event.data)),
    )


def checkpoints(job: Job) -> list[CheckpointObject]:
    """The version that a job has published, if it has."""
    result = job.status.result
    if result is None:
        return []
    metrics: dict[str, float | None] = {"step": float(result.step)}
    for name, value in result.metrics.items():
        for shown in CHECKPOINT_METRICS.get(name, (name,)):
            metrics[shown] = finite(value)
    found = CheckpointObject(
        id=f"ftckpt-{job.request.id.removeprefix('ftjob-')}",
        created_at=finished(job) or job.request.created,
        fine_tuned_model_checkpoint=result.version,
        fine_tuning_job_id=job.request.id,
        metrics=metrics,
        step_number=result.step,
    )
    return [found]


def finite(value: Any) -> Any:
    """The same data with null in place of NaN and infinities, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value
