"""The jobs of the stages before a policy's own training, and what it inherits from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

from raytune_llm.data.records import Record
from raytune_llm.errors import require
from raytune_llm.jobs.schema import Promotion, SweepJob, TrainJob
from raytune_llm.methods.base import Stage
from raytune_llm.methods.common.policy_init import PolicyInit
from raytune_llm.methods.model_refs import resolve_ref
from raytune_llm.models.adapters.base import Adapter
from raytune_llm.stores.card import Version
from raytune_llm.stores.components import build
from raytune_llm.stores.registry import Registry

J = TypeVar("J", bound=TrainJob)
COMPANIONS = ("method.reward_adapter", "method.judge_adapter", "method.init_adapter")
"""Keys of versions by which all trials of a sweep are trained and compared."""


def inherited(job: J) -> J:
    """The job with the size and settings of the adapter that it goes on in, where it names one."""
    reference = job.method.needs.init_adapter
    if reference is None:
        return job
    registry = Registry(job.registry_dir)
    version = resolve_ref(registry, "method.init_adapter", reference, kind="adapter", base=job.model)
    config = version.card.config
    job = replace(job, adapter=build(Adapter, config["adapter"]))
    size = config["tuning"]["adapter_size"]
    return job.with_values({"method.init_adapter": version.reference, "tuning.adapter_size": size})


def stage_job(job: TrainJob, stage: Stage) -> TrainJob:
    """The job of a stage: the same base and knobs, at the recommended rate, by the method that conf/method names."""
    tuning = replace(job.tuning, steps=stage.steps, learning_rate_multiplier=1.0)
    own = {field.name: getattr(job, field.name) for field in fields(TrainJob)}
    values = {"name": f"{job.name}-{stage.name}", "method": stage.method, "data": stage.records_of(job.data)}
    return TrainJob(**own | values | {"tuning": tuning, "promote": Promotion.always})


def finished(job: TrainJob) -> Version | None:
    """The version that this run of the job has published already."""
    versions = [version for version in Registry(job.registry_dir).list() if version.name == job.name]
    return next((version for version in versions if version.card.config["run"] == job.run), None)


def check(job: TrainJob, records: Sequence[Record]) -> None:
    """Refuse stages that this job can't have, and a space of what they decide. `records` are those of data.train.
    Raises ValueError."""
    swept = job.sweep.axes() if isinstance(job, SweepJob) else {}
    for stage in job.method.needs.stages:
        stage_job(job, stage)
        wrong = [] if stage.data else [record for record in records if not isinstance(record, stage.method.records)]
        if wrong:
            raise ValueError(
                f"data.train can't be used for {stage.meaning}: {len(wrong)} of its {len(records)} records are of kind "
                f"{type(wrong[0]).__name__}; {stage.instead}"
            )
    for key in swept:
        shared = key in COMPANIONS or any(stage.decides(key) for stage in job.method.needs.stages)
        require(not shared, f"sweep.space.{key}", list(swept[key].choices), f"no axis: all trials share one {key}")
    if isinstance(job.method, PolicyInit):
        check_beginning(job, job.method, swept)


def check_beginning(job: TrainJob, method: PolicyInit, swept: Mapping[str, object]) -> None:
    """Refuse two beginnings, and knobs that the adapter which is gone on with decides. Raises ValueError."""
    if method.sft_data is None and method.init_adapter is None:
        return
    key = "sft_data" if method.init_adapter is None else "init_adapter"
    given = f"method.{key}={getattr(method, key)}"
    require(job.adapter.kind == "adapter", "adapter", type(job.adapter).__name__.lower(), f"lora with {given}")
    if method.init_adapter is not None:
        if method.sft_data is not None:
            raise ValueError(f"{given} and method.sft_data={method.sft_data} both say where training begins; give one")
        resolve_ref(
            Registry(job.registry_dir), "method.init_adapter", method.init_adapter, kind="adapter", base=job.model
        )
    for axis in swept:
        if axis == "tuning.adapter_size" or axis.startswith("adapter."):
            raise ValueError(
                f"sweep.space.{axis} can't be swept with {given}: training goes on in that adapter, whose size and "
                f"settings are inherited; take the axis out of the space with sweep.space.{axis}=null"
            )
