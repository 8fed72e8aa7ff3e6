"""Trials as slots of one resident base per device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.errors import require
from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.space import Plan

if TYPE_CHECKING:
    from raytune_llm.jobs.schema import SweepJob

PACKABLE_KEYS = ("tuning.", "adapter.", "method.", "seed")
"""Keys that slots of one pack may differ in."""


OWN_PROCESS_KEYS = ("adapter.targets", "adapter.dora")


GPU_SLOTS = 16


CPU_SLOTS = 3
"""A core is busy with two trials at once, and the third is there while another's end is decided; trials that come later
are stopped by what the first ones have shown, and each running trial is a process."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Trials as slots of one resident base per GPU (or per scaling.cpus_per_worker CPUs)."""

    slots: int | None
    """Trials that share one base at a time; ≥ 1, or null for 16 on a GPU and 3 on CPUs, where more would gain little;
    fewer where memory doesn't hold them."""

    def __post_init__(self) -> None:
        require(self.slots is None or self.slots >= 1, "sweep.backend.slots", self.slots, "≥ 1 or null")

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        if job.scaling.num_workers > 1:
            return f"scaling.num_workers={job.scaling.num_workers}: a packed trial has one worker"
        for key in plan.axes:
            if not key.startswith(PACKABLE_KEYS) or key in OWN_PROCESS_KEYS:
                return f"{key} is swept, in which trials on one base can't differ"
        from raytune_llm.models.base import skeleton
        from raytune_llm.training.packed.eligibility import not_packable_reason

        model = skeleton(job.model, score=job.method.needs.score)
        return not_packable_reason(job.adapter.config(model, rank=job.tuning.adapter_size), job.method, model)

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        from raytune_llm.sweep.runner_packed import PackedRunner

        slots = self.slots or (GPU_SLOTS if use_gpu else CPU_SLOTS)
        return PackedRunner(job, plan, examples, use_gpu, slots=slots)
