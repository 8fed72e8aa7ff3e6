"""How a sweep's trials are trained: packed on resident bases, each by itself, or whichever fits.

A backend gives the tuner a Runner: what Ray Tune runs for a trial, how many at a time, and what came of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.input_error import require
from raytune_llm.job import Outcome, SweepJob
from raytune_llm.sweep.space import Plan

PACKABLE_KEYS = ("tuning.", "adapter.", "method.", "seed")
"""Keys that slots of one pack may differ in."""
OWN_PROCESS_KEYS = ("adapter.targets", "adapter.dora")
GPU_SLOTS = 16
CPU_SLOTS = 3
"""A core is busy with two trials at once, and the third is there while another's end is decided; trials that come later
are stopped by what the first ones have shown, and each running trial is a process."""


class Runner(Protocol):
    """A backend that is running a sweep."""

    trainable: Any
    """Ray Tune's, with the resources it needs."""
    max_concurrent: int | None
    trains_on: bool
    """Whether a trial trains on while Ray Tune decides about its report, so that the decision may take a moment."""

    def outcome(self, result: Any) -> Outcome:
        """How a trial of Ray Tune ended."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Backend(Protocol):
    """What conf/sweep/backend chooses."""

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        """Why it can't run this sweep, or None. Costs no accelerator."""
        ...

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        """Begin to run. `examples` is a ray.ObjectRef of Examples."""
        ...


@dataclass(frozen=True, kw_only=True)
class RayTrain:
    """Each trial by itself, with its own copy of the base: any method, any adapter, full tuning, several workers."""

    def why_not(self, job: SweepJob, plan: Plan) -> str | None:
        return None

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        from raytune_llm.sweep.alone import Alone

        print("training each trial by itself", flush=True)
        return Alone(job, plan, examples, use_gpu)


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
        from raytune_llm.training.packed.eligible import why_not_packable

        model = skeleton(job.model, score=job.method.needs.score)
        return why_not_packable(job.adapter.config(model, rank=job.tuning.adapter_size), job.method, model)

    def start(self, job: SweepJob, plan: Plan, examples: Any, use_gpu: bool) -> Runner:
        from raytune_llm.sweep.bridge import PackedRunner

        slots = self.slots or (GPU_SLOTS if use_gpu else CPU_SLOTS)
        return PackedRunner(job, plan, examples, use_gpu, slots=slots)


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
