"""A live trial as a pack holds it, and the report of one step of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from raytune_llm.training.packed.batches import Terms, TokenTable
from raytune_llm.training.packed.hyperparameters import Hyperparameters
from raytune_llm.training.packed.losses import Metrics


@dataclass(frozen=True)
class StepReport:
    """Metrics of one optimizer step of one slot."""

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
    """A trial in a pack; its weights and moments are a row of the pack's tables."""

    spec: Hyperparameters
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
