"""/v1/projects/PROJECT/locations/LOCATION/tuningJobs: the same jobs in Vertex AI's words.

Projects and locations are taken as they are: a key sees its own jobs below any. Left out: what Vertex does with the
tuned model (endpoints, the model registry, evaluation), distillation and preference tuning, for which OpenAI's routes
have methods.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from raytune_llm.service.api.backend import BackendOf, Owner
from raytune_llm.service.api.creation import Params, Wish, create_job, existing
from raytune_llm.service.api.paging import cut
from raytune_llm.service.api.vertex_objects import TuningJobList, TuningJobObject, tuning_job
from raytune_llm.service.api.vertex_requests import TuningJobRequest
from raytune_llm.serving.api.errors import invalid

PARAMS = Params(
    model="baseModel",
    training="supervisedTuningSpec.trainingDatasetUri",
    validation="supervisedTuningSpec.validationDatasetUri",
    suffix="tunedModelDisplayName",
    hyperparameters="supervisedTuningSpec.hyperParameters",
)
Part = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]

_routes = APIRouter(prefix="/projects/{project}/locations/{location}/tuningJobs", tags=["Vertex AI"])


def routers() -> Sequence[APIRouter]:
    """The routes below both of Google's prefixes."""
    found = []
    for prefix in ("/v1", "/v1beta1"):
        router = APIRouter(prefix=prefix)
        router.include_router(_routes)
        found.append(router)
    return found


@_routes.post("", response_model_exclude_none=True, summary="Create a tuning job")
def create(project: Part, location: Part, body: TuningJobRequest, backend: BackendOf, owner: Owner) -> TuningJobObject:
    """Hyperparameters that are left out are found by a sweep."""
    spec = body.spec()
    wish = Wish(
        api="vertex",
        method="sft",
        model=body.baseModel,
        training=spec.trainingDatasetUri,
        validation=spec.validationDatasetUri,
        hyperparameters=spec.hyperparameters(),
        suffix=as_suffix(body.tunedModelDisplayName),
        extra=body.model_dump(mode="json", exclude_none=True),
    )
    return tuning_job(create_job(backend, owner, wish, PARAMS), project, location)


@_routes.get("", response_model_exclude_none=True, summary="List tuning jobs, the newest first")
def list_jobs(
    project: Part,
    location: Part,
    backend: BackendOf,
    owner: Owner,
    pageSize: Annotated[int, Query(ge=0, le=1000)] = 100,
    pageToken: str = "",
    filter: str = "",
) -> TuningJobList:
    if filter:
        raise invalid("filter is not supported: list all, and choose from them", param="filter")
    jobs = backend.controller.jobs(owner)
    shown, has_more = cut([job.request.id for job in jobs], pageToken, pageSize or 100, "pageToken")
    page = [tuning_job(job, project, location) for job in jobs[shown]]
    return TuningJobList(tuningJobs=page, nextPageToken=jobs[shown][-1].request.id if has_more else "")


@_routes.get("/{job_id}", response_model_exclude_none=True, summary="A tuning job")
def retrieve(project: Part, location: Part, job_id: str, backend: BackendOf, owner: Owner) -> TuningJobObject:
    return tuning_job(existing(backend.controller.job(job_id, owner), job_id), project, location)


@_routes.post("/{job_id}:cancel", summary="End a tuning job")
def cancel(project: Part, location: Part, job_id: str, backend: BackendOf, owner: Owner) -> dict[str, Any]:
    existing(backend.controller.cancel(job_id, owner), job_id)
    return {}


def as_suffix(display_name: str | None) -> str | None:
    """A display name as a name of the registry."""
    words = re.findall(r"[A-Za-z0-9._-]+", display_name or "")
    return "-".join(words).lstrip("._-")[:64] or None
