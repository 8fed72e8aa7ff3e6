"""Each trial on its own copy of the base."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.sweep.backends.base import Runner, RunnerInputs
from raytune_llm.sweep.plan import Plan
from raytune_llm.training.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class RayTrain:
    """Each trial on its own copy of the base: any method, any adapter, full tuning, several workers."""

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        return None

    def start(self, inputs: RunnerInputs) -> Runner:
        from raytune_llm.sweep.runner_ray_train import RayTrainRunner

        print("running each trial on its own copy of the base", flush=True)
        return RayTrainRunner(inputs)
