"""Trials as slots of one resident base per device."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.errors import require
from raytune_llm.sweep.backends.base import Runner, RunnerInputs
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.simulation import Layout
from raytune_llm.training.config import TrialConfig
from raytune_llm.training.rehearsal import Rehearsal, Script

GPU_SLOTS = 16
CPU_SLOTS = 3
"""Two trials at once keep a core busy, and the third trains while the end of another is decided; more would only start
trials that the first ones' reports would stop, and each running trial costs a process."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Trials as slots of one resident base per GPU (or per scaling.cpus_per_worker CPUs)."""

    slots: int | None
    """Trials that share one base at a time; ≥ 1, or null for 16 on a GPU and 3 on CPUs, where more would gain little;
    fewer where memory doesn't hold them."""

    compile: bool | None
    """Whether torch.compile fuses the base's norms, activations, rotary positions and loss, which takes seconds at the
    start of a sweep; null = on GPUs."""

    def __post_init__(self) -> None:
        require(self.slots is None or self.slots >= 1, "sweep.backend.slots", self.slots, "≥ 1 or null")

    def why_not(self, config: TrialConfig, plan: Plan) -> str | None:
        if config.scaling.num_workers > 1:
            return f"scaling.num_workers={config.scaling.num_workers}: a packed trial has one worker"
        scaling = config.scaling
        if scaling.trainer:
            return f"scaling.trainer has {', '.join(scaling.trainer)}, of which packed trials have no trainer to tell"
        if scaling.gpus_per_worker < 1:
            return f"scaling.gpus_per_worker={scaling.gpus_per_worker}: a pack takes a whole GPU"
        if config.model.is_quantized:
            return "model.from_pretrained quantises the base, which packed trials compute with as it is stored"
        for key in plan.keys:
            if key.startswith("scaling.") or key in config.adapter.own_process_keys:
                return f"trials differ in {key}, in which those on one base can't"
        from raytune_llm.models.base import skeleton
        from raytune_llm.training.packed.eligibility import not_packable_reason

        model = skeleton(config.model, score=config.method.needs.score)
        adapter = config.adapter.config(model, lora_rank=config.tuning.adapter_size)
        return not_packable_reason(adapter, config.method, model)

    def slots_on(self, *, use_gpu: bool) -> int:
        """Trials that share one base at a time, at most."""
        return self.slots or (GPU_SLOTS if use_gpu else CPU_SLOTS)

    def start(self, inputs: RunnerInputs) -> Runner:
        from raytune_llm.sweep.runner_packed import PackedRunner

        return PackedRunner(inputs, slots=self.slots_on(use_gpu=inputs.use_gpu), compile=self.compile)

    def rehearse(self, inputs: RunnerInputs, script: Script) -> Rehearsal:
        from raytune_llm.sweep.rehearsing import rehearse_packed

        return rehearse_packed(inputs, script, slots=self.slots_on(use_gpu=inputs.use_gpu), compile=self.compile)

    def layout(self, inputs: RunnerInputs, rehearsal: Rehearsal) -> Layout:
        from raytune_llm.sweep.rehearsing import packed_layout

        return packed_layout(inputs, rehearsal, self.slots_on(use_gpu=inputs.use_gpu))
