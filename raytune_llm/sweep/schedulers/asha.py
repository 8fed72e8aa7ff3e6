"""Asynchronous successive halving (Li et al., 2018, arXiv 1810.05934)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.schedulers.base import STEP, geometric, quantile


@dataclass(frozen=True, kw_only=True)
class ASHA:
    """Asynchronous successive halving (Li et al., 2018, arXiv 1810.05934)."""

    grace_steps: int
    """No trial is stopped before this step; ≥ 1."""
    reduction_factor: int
    """At each rung the best 1/reduction_factor continue, and the next rung is this many times later; ≥ 2."""

    replays = True

    def __post_init__(self) -> None:
        require(self.grace_steps >= 1, "sweep.scheduler.grace_steps", self.grace_steps, "≥ 1")
        require(self.reduction_factor >= 2, "sweep.scheduler.reduction_factor", self.reduction_factor, "≥ 2")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr=STEP,
            metric=metric,
            mode=mode,
            max_t=steps + 1,  # a trial at its last step ends as complete, not as stopped
            grace_period=min(self.grace_steps, steps),
            reduction_factor=self.reduction_factor,
        )

    def rungs(self, steps: int) -> list[int]:
        return geometric(min(self.grace_steps, steps), self.reduction_factor, steps)

    def survives(self, cost: float, before: Sequence[float]) -> bool:
        return cost <= quantile(before, 1 / self.reduction_factor)

    def order(self, values: Sequence[float]) -> list[int]:
        """The best 1/reduction_factor from the last of them upward, then the others downward. ASHA lets the first at a
        rung pass, then whoever is among the best so far: in this order, just those pass."""
        ranked = sorted(range(len(values)), key=values.__getitem__)
        passing = -(-len(values) // self.reduction_factor)
        return ranked[:passing][::-1] + ranked[passing:]
