"""Random search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import domain


@dataclass(frozen=True, kw_only=True)
class Random:
    """Points drawn at random."""

    trials: int
    """Trials to run; ≥ 1."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, "sweep.search.trials", self.trials, "≥ 1")

    def param_space(self, plan: Plan) -> dict[str, Any]:
        return {key: domain(axis) for key, axis in plan.axes.items()}

    def num_samples(self) -> int:
        return self.trials

    def num_trials(self, plan: Plan) -> int:
        return self.trials

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(random_state=seed)
