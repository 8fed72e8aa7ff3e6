"""Packed where method, adapter and base allow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.backends.packed import Packed
from raytune_llm.sweep.backends.ray_train import RayTrain
from raytune_llm.sweep.space import Plan

if TYPE_CHECKING:
    from raytune_llm.jobs.schema import SweepJob


@dataclass(frozen=True, kw_only=True)
class Auto(Packed):
    """Packed where method, adapter and base allow it, else each trial by itself; says which, and why."""

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        return None

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        reason = super().why_not(job, plan)
        if reason is None:
            return super().start(job, plan, examples, use_gpu)
        print(f"not packed: {reason}", flush=True)
        return RayTrain().start(job, plan, examples, use_gpu)
