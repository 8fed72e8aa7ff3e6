"""HyperBand (Li et al., 2018, arXiv 1603.06560)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.schedulers.base import STEP, geometric, quantile


@dataclass(frozen=True, kw_only=True)
class HyperBand:
    """Brackets of successive halving with different first rungs (Li et al., 2018, arXiv 1603.06560): trials of a
    bracket wait for each other at its rungs."""

    reduction_factor: int
    """At each rung the best 1/reduction_factor continue, and the next rung is this many times later; ≥ 2."""

    replays = False
    order = None

    def __post_init__(self) -> None:
        require(self.reduction_factor >= 2, "sweep.scheduler.reduction_factor", self.reduction_factor, "≥ 2")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import HyperBandScheduler

        return HyperBandScheduler(
            time_attr=STEP, metric=metric, mode=mode, max_t=steps, reduction_factor=self.reduction_factor
        )

    def rungs(self, steps: int) -> list[int]:
        """Those of a bracket in the middle: others begin earlier or later."""
        return geometric(max(1, steps // self.reduction_factor**2), self.reduction_factor, steps)

    def survives(self, cost: float, before: Sequence[float]) -> bool:
        return cost <= quantile(before, 1 / self.reduction_factor)
