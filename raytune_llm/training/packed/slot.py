"""One trial of a pack: its settings, what it says of a step, and everything needed to go on with it elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytune_llm.errors import require
from raytune_llm.models.lora_weights import Weights
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.batches import Terms, TokenTable
from raytune_llm.training.packed.losses import Metrics

STATE_FILE = "slot.safetensors"


@dataclass(frozen=True, kw_only=True)
class SlotSpec:
    """Hyperparameters of one trial."""

    trial_id: str
    rank: int
    alpha: float
    """LoRA's updates are scaled by alpha / rank, or by alpha / √rank with rslora."""
    rslora: bool
    dropout: float
    """Before the adapters; 0 ≤ dropout < 1."""
    learning_rate: float
    """Peak."""
    schedule: Schedule
    warmup_steps: int
    """Steps of linear warm-up from 0."""
    num_steps: int | None
    """Horizon of a schedule that decays, steps; null for a constant one, which may go on for ever."""
    weight_decay: float
    max_grad_norm: float
    batch_size: int
    """Examples per optimizer step."""
    micro_batch_size: int | None
    """With dropout: examples per forward pass, so that its stream is that of a run alone; null = the whole batch.
    Without dropout the cut changes nothing and the planner chooses it."""
    seed: int
    """Data order, initial adapter, dropout."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require(self.rank >= 1, "rank", self.rank, "≥ 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 ≤ dropout < 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "≥ 1")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1,
            "micro_batch_size",
            self.micro_batch_size,
            "≥ 1",
        )
        if self.schedule.looks_at_horizon:
            require(
                self.num_steps is not None and self.num_steps >= 1,
                "num_steps",
                self.num_steps,
                "≥ 1 with a decaying schedule",
            )

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def rows_per_pass(self) -> int | None:
        """Rows that must go through the model together, in order: with dropout a micro-batch; None = any cut will
        do."""
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


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step of one slot said."""

    step: int
    """Steps done, this one included."""
    metrics: Metrics
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    num_tokens: int
    """Own tokens through the model, padding not counted."""


@dataclass(eq=False)
class Slot:
    """A trial in a pack, but for its row of the tables."""

    spec: SlotSpec
    table: TokenTable
    terms: Terms
    weights: dict[str, np.ndarray]
    """Each example's weight in each term."""
    generator: torch.Generator
    step: int
    order: Iterator[int] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slots of equal shape can share a pass."""
        return id(self.table), self.spec.batch_size, self.spec.rows_per_pass or 0


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """A trial between two steps: enough to go on in any pack on the same base as if nothing had happened."""

    spec: SlotSpec
    step: int
    """Optimizer steps done. The data position follows from it: every step takes batch_size examples."""
    tensors: dict[str, Tensor]
    """`{theta,m,v}.{a,b}.{module}` of the spec's own rank, `{theta,m,v}.head.{name}` of what is trained beside it, and
    `generator`, the dropout stream's state."""

    def adapter(self, key: str, names: Sequence[str]) -> Weights:
        """theta, m or v of the adapter on these modules. Raises ValueError when it was made for other modules."""
        missing = [name for name in names if f"{key}.a.{name}" not in self.tensors]
        if missing:
            raise ValueError(
                f"the saved slot has nothing for modules {missing[:3]}; it was made for another base or other targets"
            )
        return {name: (self.tensors[f"{key}.a.{name}"], self.tensors[f"{key}.b.{name}"]) for name in names}

    def heads(self, key: str, names: Iterable[str]) -> dict[str, Tensor]:
        """theta, m or v of what was trained beside the adapter. Raises ValueError when there is no such head."""
        missing = [name for name in names if f"{key}.head.{name}" not in self.tensors]
        if missing:
            raise ValueError(f"the saved slot has no heads {missing}; it was trained by another method")
        return {name: self.tensors[f"{key}.head.{name}"] for name in names}

    def save(self, folder: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        spec = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self.spec).items()}
        about = {"spec": json.dumps(spec), "step": str(self.step)}
        partial = folder / (STATE_FILE + ".partial")
        save_file(self.tensors, partial, metadata=about)
        partial.replace(folder / STATE_FILE)

    @classmethod
    def load(cls, folder: str | Path) -> SlotState:
        from safetensors import safe_open

        with safe_open(Path(folder) / STATE_FILE, framework="pt") as file:
            about: dict[str, str] = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        spec: dict[str, Any] = json.loads(about["spec"])
        spec |= {"schedule": Schedule(spec["schedule"]), "betas": tuple(spec["betas"])}
        return cls(spec=SlotSpec(**spec), step=int(about["step"]), tensors=tensors)
