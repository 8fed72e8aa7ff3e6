"""The median stopping rule (Golovin et al., 2017, Vizier)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.schedulers.base import STEP, quantile


@dataclass(frozen=True, kw_only=True)
class Median:
    """Stop a trial whose best is worse than the median of the others' running means (Golovin et al., 2017, Vizier)."""

    grace_steps: int
    """No trial is stopped before this step; ≥ 1."""
    min_trials: int
    """Trials that must have reported before any is stopped; ≥ 1."""

    replays = True
    order = None

    def __post_init__(self) -> None:
        require(self.grace_steps >= 1, "sweep.scheduler.grace_steps", self.grace_steps, "≥ 1")
        require(self.min_trials >= 1, "sweep.scheduler.min_trials", self.min_trials, "≥ 1")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(
            time_attr=STEP,
            metric=metric,
            mode=mode,
            grace_period=self.grace_steps,
            min_samples_required=self.min_trials,
        )

    def rungs(self, steps: int) -> list[int]:
        """The first: who is better than half of the others there seldom falls behind later."""
        return [self.grace_steps] if self.grace_steps < steps else []

    def survives(self, cost: float, before: Sequence[float]) -> bool:
        return len(before) < self.min_trials or cost <= quantile(before, 0.5)
