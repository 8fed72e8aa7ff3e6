"""Packed where method, adapter and base allow it."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.sweep.backends.base import Runner, RunnerInputs
from raytune_llm.sweep.backends.packed import Packed
from raytune_llm.sweep.backends.ray_train import RayTrain
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.simulation import Layout
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.rehearsal import Rehearsal, Script


@dataclass(frozen=True, kw_only=True)
class Auto(Packed):
    """Packed where method, adapter and base allow it, else each trial on its own copy of the base; the terminal shows
    which, and why."""

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        return None

    def start(self, inputs: RunnerInputs) -> Runner:
        reason = super().why_not(inputs.config, inputs.plan)
        if reason is None:
            return super().start(inputs)
        print(f"not packed: {reason}", flush=True)
        return RayTrain().start(inputs)

    def rehearse(self, inputs: RunnerInputs, script: Script) -> Rehearsal:
        packs = super().why_not(inputs.config, inputs.plan) is None
        return super().rehearse(inputs, script) if packs else RayTrain().rehearse(inputs, script)

    def layout(self, inputs: RunnerInputs, rehearsal: Rehearsal) -> Layout:
        packs = super().why_not(inputs.config, inputs.plan) is None
        return super().layout(inputs, rehearsal) if packs else RayTrain().layout(inputs, rehearsal)
