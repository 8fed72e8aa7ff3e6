"""No trial is stopped early by a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NoStopping:
    """Every trial runs to its own end."""

    replays = True
    order = None

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()

    def rungs(self, steps: int) -> list[int]:
        return []

    def survives(self, cost: float, before: Sequence[float]) -> bool:
        return True
