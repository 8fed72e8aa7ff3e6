"""/v1/fine_tuning: jobs in OpenAI's words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from raytune_llm.service.api.backend import BackendOf, Owner
from raytune_llm.service.api.creation import Params, Wish, create_job, existing
from raytune_llm.service.api.job_objects import CheckpointObject, JobObject, checkpoints, job_object
from raytune_llm.service.api.job_requests import METHODS, JobRequest
from raytune_llm.service.api.paging import After, Limit, Page, cut, page_of
from raytune_llm.service.records import State
from raytune_llm.serving.api.errors import invalid

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])
PARAMS = Params(
    model="model",
    training="training_file",
    validation="validation_file",
    suffix="suffix",
    hyperparameters="hyperparameters",
)
METADATA = re.compile(r"metadata\[(.*)\]")


class Usage(BaseModel):
    """What an owner's jobs have taken, and what they may take."""

    device_hours: float = Field(description="GPU hours; hours of a job where there is no GPU.")
    limit: float | None = Field(description="service.device_hours_per_key; null is no limit.")
    running: int
    queued: int = Field(description="Jobs whose files are checked, or that wait for their turn.")
    stored_bytes: int
    stored_bytes_limit: int


@router.post("/jobs", summary="Create a job")
def create(body: JobRequest, backend: BackendOf, owner: Owner) -> JobObject:
    """Tunes a model. A hyperparameter that is "auto" is swept; the winner is named only if it is better than its base
    and the champion by more than chance."""
    wish = Wish(
        api="openai",
        method=METHODS[body.type],
        model=body.model,
        training=body.training_file,
        validation=body.validation_file,
        hyperparameters=body.values(),
        suffix=body.suffix,
        seed=body.seed,
        metadata=body.metadata or {},
        wandb=body.integrations[0].wandb.model_dump(exclude_none=True) if body.integrations else None,
    )
    return job_object(backend, create_job(backend, owner, wish, PARAMS))


@router.get("/jobs", summary="List jobs, the newest first")
def list_jobs(
    request: Request, backend: BackendOf, owner: Owner, after: After = None, limit: Limit = 20
) -> Page[JobObject]:
    """`metadata[KEY]=VALUE` lists only those that have it, `metadata=null` those without any."""
    wanted = _metadata(request)
    jobs = [job for job in backend.controller.jobs(owner) if _has(job.request.metadata, wanted)]
    shown, has_more = cut([job.request.id for job in jobs], after, limit, "after")
    return Page.of([job_object(backend, job) for job in jobs[shown]], has_more)


@router.get("/jobs/{job_id}", summary="A job")
def retrieve(job_id: str, backend: BackendOf, owner: Owner) -> JobObject:
    return job_object(backend, existing(backend.controller.job(job_id, owner), job_id))


@router.post("/jobs/{job_id}/cancel", summary="End a job")
def cancel(job_id: str, backend: BackendOf, owner: Owner) -> JobObject:
    return job_object(backend, existing(backend.controller.cancel(job_id, owner), job_id))


@router.post("/jobs/{job_id}/pause", summary="Stop a job until it is resumed")
def pause(job_id: str, backend: BackendOf, owner: Owner) -> JobObject:
    return job_object(backend, existing(backend.controller.pause(job_id, owner), job_id))


@router.post("/jobs/{job_id}/resume", summary="Queue a paused job")
def resume(job_id: str, backend: BackendOf, owner: Owner) -> JobObject:
    """It continues from its last checkpoint."""
    return job_object(backend, existing(backend.controller.resume(job_id, owner), job_id))


@router.get("/jobs/{job_id}/checkpoints", summary="The versions that a job has made")
def list_checkpoints(
    job_id: str, backend: BackendOf, owner: Owner, after: After = None, limit: Limit = 10
) -> Page[CheckpointObject]:
    return page_of(checkpoints(existing(backend.controller.job(job_id, owner), job_id)), after, limit)


@router.get("/usage", summary="What the jobs of a key have taken")
def usage(backend: BackendOf, owner: Owner) -> Usage:
    states = [job.status.state for job in backend.controller.jobs(owner)]
    return Usage(
        device_hours=backend.controller.device_hours(owner),
        limit=backend.service.device_hours_per_key,
        running=states.count(State.running),
        queued=states.count(State.queued) + states.count(State.validating_files),
        stored_bytes=sum(file.num_bytes for file in backend.files(owner)),
        stored_bytes_limit=backend.service.max_stored_bytes_per_key,
    )


def _metadata(request: Request) -> dict[str, str] | None:
    """The pairs that are asked for; None for jobs without any."""
    wanted = {}
    for name, value in request.query_params.multi_items():
        if found := METADATA.fullmatch(name):
            wanted[found[1]] = value
        elif name == "metadata" and value != "null":
            raise invalid("metadata must be given as metadata[KEY]=VALUE, or as metadata=null", param="metadata")
    if "metadata" in request.query_params and wanted:
        raise invalid("metadata=null and metadata[KEY]=VALUE can't be combined", param="metadata")
    return None if "metadata" in request.query_params else wanted


def _has(metadata: Mapping[str, str], wanted: Mapping[str, str] | None) -> bool:
    return not metadata if wanted is None else all(metadata.get(key) == value for key, value in wanted.items())
