"""Each trial on its own copy of the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.space import Plan

if TYPE_CHECKING:
    from raytune_llm.jobs.schema import SweepJob


@dataclass(frozen=True, kw_only=True)
class RayTrain:
    """Each trial by itself, with its own copy of the base: any method, any adapter, full tuning, several workers."""

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        return None

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        from raytune_llm.sweep.runner_ray_train import RayTrainRunner

        print("training each trial by itself", flush=True)
        return RayTrainRunner(job, plan, examples, use_gpu)
