"""From a checked request, of either API, to a job."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raytune_llm.service.api.backend import Backend
from raytune_llm.service.api.job_requests import MAX_SEED
from raytune_llm.service.api.references import base_and_version, data_ref
from raytune_llm.service.api.values import Value
from raytune_llm.service.controller import Job
from raytune_llm.service.records import AUTO, TuningRequest, new_id, registry_name
from raytune_llm.serving.api.errors import ApiError, invalid


@dataclass(frozen=True, kw_only=True)
class Params:
    """What fields are called in the API that was asked."""

    model: str
    training: str
    validation: str
    suffix: str
    hyperparameters: str


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A job as either API asks for it."""

    api: str
    method: str
    model: str
    training: str
    validation: str | None
    hyperparameters: Mapping[str, Value]
    suffix: str | None
    seed: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    wandb: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def create_job(backend: Backend, owner: str, wish: Wish, params: Params) -> Job:
    """Raises ApiError for what it names and isn't there, and for quotas."""
    base, version = base_and_version(backend, owner, wish.model, params.model)
    if version is not None and wish.hyperparameters.get("adapter_size", AUTO) != AUTO:
        text = f"adapter_size must be left out: training continues in {version.reference}, whose size is kept"
        raise invalid(text, param=params.hyperparameters)
    name = registry_name(owner, wish.suffix, base)
    if name in backend.bases:
        raise invalid(
            f"{params.suffix}={wish.suffix} is the name of an offered model; choose another", param=params.suffix
        )
    with backend.lock:  # no file that it names is deleted before it is kept
        training = data_ref(backend, owner, wish.training, params.training)
        validation = None
        if wish.validation:
            validation = data_ref(backend, owner, wish.validation, params.validation)
        request = TuningRequest(
            id=new_id("ftjob"),
            owner=owner,
            created=int(time.time()),
            api=wish.api,
            method=wish.method,
            model=wish.model,
            base=base,
            init_adapter=None if version is None else version.reference,
            training=training,
            validation=validation,
            hyperparameters=_with_teacher(backend, owner, wish.hyperparameters),
            name=name,
            suffix=wish.suffix,
            seed=secrets.randbelow(MAX_SEED + 1) if wish.seed is None else wish.seed,
            metadata=wish.metadata,
            wandb=wish.wandb,
            extra=wish.extra,
        )
        return backend.controller.create(request)


def existing(job: Job | None, id: str) -> Job:
    """Raises ApiError 404 where there is no such job."""
    if job is None:
        raise ApiError(404, f"no such job: {id}", code="not_found", param="job_id")
    return job


def _with_teacher(backend: Backend, owner: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The same with a teacher's alias as the version that it means now."""
    if "teacher" not in values:
        return dict(values)
    base, version = base_and_version(backend, owner, str(values["teacher"]), "method")
    return {**values, "teacher": base if version is None else version.reference}
