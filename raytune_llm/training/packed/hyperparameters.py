"""A trial's settings as a pack trains it. Free of torch, as all of a trial's spec."""

from __future__ import annotations

import math
from dataclasses import dataclass

from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.training.config import Schedule, TrialSpec


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What one slot trains with: plain numbers, whose ranges Tuning and the adapter have checked."""

    trial_id: str
    """Names the slot."""
    lora_rank: int
    alpha: float
    """LoRA's updates are scaled by alpha / lora_rank, or by alpha / √lora_rank with rslora."""
    rslora: bool
    dropout: float
    """Before the adapters; 0 ≤ dropout < 1."""
    learning_rate: float
    """Peak."""
    schedule: Schedule
    warmup_steps: int
    """Steps of linear warm-up from 0."""
    num_steps: int | None
    """Horizon of a schedule that decays, steps; None for a constant one, which has no end."""
    weight_decay: float
    max_grad_norm: float
    batch_size: int
    """Examples per optimizer step."""
    micro_batch_size: int | None
    """With dropout: examples per forward pass, so that its stream is that of an unpacked run; None = the whole batch.
    Without dropout the split into passes changes no result and the planner chooses it."""
    seed: int
    """Data order, initial adapter, dropout."""
    subset: float = 1.0
    """Share of the examples that is trained on; > 0 and ≤ 1."""
    weights: tuple[float, ...] = ()
    """Passes over the examples of each source in an epoch; () = one over all."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.alpha / (math.sqrt(self.lora_rank) if self.rslora else self.lora_rank)

    @property
    def rows_per_pass(self) -> int | None:
        """Rows that must go through the model together, in order: with dropout a micro-batch; None = any split
        will do."""
        if self.dropout == 0:
            return None
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step` (from 0), as transformers' get_scheduler has it."""
        if step < self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule is Schedule.constant:
            return self.learning_rate
        assert self.num_steps is not None
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        if self.schedule is Schedule.linear:
            return self.learning_rate * max(0.0, 1.0 - progress)
        return self.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def hyperparameters_of(spec: TrialSpec) -> Hyperparameters:
    """Those of a trial with a LoRA adapter."""
    config, tuning, adapter = spec.config, spec.config.tuning, spec.config.adapter
    assert isinstance(adapter, LoRA)
    return Hyperparameters(
        trial_id=spec.trial.id,
        lora_rank=tuning.adapter_size,
        alpha=adapter.alpha,
        rslora=adapter.rslora,
        dropout=adapter.dropout,
        learning_rate=config.learning_rate,
        schedule=tuning.schedule,
        warmup_steps=tuning.warmup_steps,
        num_steps=tuning.steps if tuning.schedule.looks_at_horizon else None,
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        batch_size=tuning.batch_size,
        micro_batch_size=tuning.micro_batch_size,
        seed=config.seed,
        subset=config.data.subset,
        weights=tuple(config.data.weights.values()),
    )
