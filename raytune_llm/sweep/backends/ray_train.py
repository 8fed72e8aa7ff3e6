"""Each trial on its own copy of the base."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.sweep.backends.base import Runner, RunnerInputs
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.simulation import Layout
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.rehearsal import Rehearsal, Script


@dataclass(frozen=True, kw_only=True)
class RayTrain:
    """Each trial on its own copy of the base: any method, any adapter, full tuning, several workers."""

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        return None

    def start(self, inputs: RunnerInputs) -> Runner:
        from raytune_llm.sweep.runner_ray_train import RayTrainRunner

        print("running each trial on its own copy of the base", flush=True)
        return RayTrainRunner(inputs)

    def rehearse(self, inputs: RunnerInputs, script: Script) -> Rehearsal:
        from raytune_llm.sweep.rehearsing import num_sharing, rehearse_trainers

        cpus = inputs.config.scaling.cpus_in_sweep
        return rehearse_trainers(inputs, script, num_together=num_sharing(inputs), cpus=cpus)

    def layout(self, inputs: RunnerInputs, rehearsal: Rehearsal) -> Layout:
        from raytune_llm.sweep.rehearsing import trainer_layout

        return trainer_layout(inputs, rehearsal)
