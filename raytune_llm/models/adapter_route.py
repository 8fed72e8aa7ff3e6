"""Which adapters the rows of a forward pass go through, and where those adapters and their gradients lie.

Shape letters: B rows of a batch, T tokens, S slots of a route, C = B / S rows each, R rank.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Noise(Protocol):
    """Dropout before the adapters, drawn for each slot from its own stream."""

    def replay(self) -> AbstractContextManager[None]:
        """Draws inside repeat the first ones, for activation checkpointing."""
        ...

    def draw(self, layer: int, x: Tensor) -> Tensor:
        """0 or 1/(1−p), of the shape of x."""
        ...


@dataclass(frozen=True, slots=True)
class LayerViews:
    """One layer's part of the rows of a route."""

    a: Tensor
    """(S, R, in_features)"""
    b: Tensor
    """(S, R, out_features), times the slot's scale"""
    grad_a: Tensor | None
    grad_b: Tensor | None
    """Of B times its scale: AdapterStack.scale_grad makes it B's."""


@dataclass(frozen=True, slots=True)
class HeadViews:
    """One head's part of the rows of a route."""

    weight: Tensor
    """(S, length)"""
    grad: Tensor | None


Views = tuple[list[LayerViews], dict[str, HeadViews]]


@dataclass(slots=True)
class Route:
    """Which adapters the rows of a forward pass go through: rows i·C to (i+1)·C through the i-th of `layers`' slots."""

    num_slots: int
    layers: list[LayerViews]
    noise: Noise | None = None
    heads: dict[str, HeadViews] = field(default_factory=dict)
    """By name; what runs the model applies them."""
