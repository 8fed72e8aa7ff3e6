"""Loss terms: a sum and a weight per example, and the direction in which each improves as a metric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOSS = "eval/loss"
"""The metric that every training without sampling has."""
BITS_PER_BYTE = "eval/bits_per_byte"
"""The loss per byte of the targets' text, which bases of different tokenizers have in common."""


DRIFT = "eval/drift"
"""How far a model is from its base on general prompts, nats a token (methods/common/drift.py)."""
DRIFT_LOSS = "eval/drift_loss"
"""By how much the base's own answers to them became less likely, nats a token."""


class Better(Enum):
    """The direction in which a metric improves."""

    lower = "lower"
    higher = "higher"
    neither = "neither"


@dataclass(frozen=True)
class Term:
    """One part of the loss: coefficient · Σ sum / Σ weight. With coefficient 0 it is a metric only."""

    sum: Tensor
    """(B,)"""
    weight: Tensor
    """(B,)"""
    coefficient: float = 1.0
    better: Better = Better.lower
    """A part of the loss falls; a term that is a metric only states its direction."""
