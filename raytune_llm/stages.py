"""The stages before a policy's own training: which adapter it goes on in, which reward model it is trained by."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from raytune_llm.companions import companion
from raytune_llm.job import Promotion, TrainJob
from raytune_llm.registry import Registry
from raytune_llm.version import Version

J = TypeVar("J", bound=TrainJob)


def inherited(job: J) -> J:
    """The job with the size of the adapter that it goes on in, where it names one."""
    method: Any = job.method
    if method.init_adapter is None:
        return job
    registry = Registry(job.registry_dir)
    version = companion(registry, "method.init_adapter", method.init_adapter, kind="adapter", base=job.model)
    size = version.card.config["tuning"]["adapter_size"]
    return job.with_values({"method.init_adapter": version.reference, "tuning.adapter_size": size})


def reward_job(job: TrainJob) -> TrainJob:
    """The job of the reward model: the same data, base and knobs, by the method that conf/method names as `reward`."""
    method: Any = job.method
    tuning = replace(job.tuning, steps=method.reward_steps, learning_rate_multiplier=1.0)
    own = {field.name: getattr(job, field.name) for field in fields(TrainJob)}
    name = f"{job.name}-reward"
    return TrainJob(**own | {"name": name, "method": method.reward, "tuning": tuning, "promote": Promotion.always})


def finished(job: TrainJob) -> Version | None:
    """The version that this run of the job has published already."""
    versions = [version for version in Registry(job.registry_dir).list() if version.name == job.name]
    return next((version for version in versions if version.card.config["run"] == job.run), None)
