"""Grid search: every point of the space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every point of the space."""

    def param_space(self, plan: Plan) -> dict[str, Any]:
        from ray import tune

        for key, axis in plan.axes.items():
            require(
                bool(axis.choices),
                f"sweep.space.{key}",
                "a range",
                "a list of choices for sweep/search=grid, or sweep/search=random",
            )
        return {key: tune.grid_search(list(axis.choices)) for key, axis in plan.axes.items()}

    def num_samples(self) -> int:
        return 1

    def num_trials(self, plan: Plan) -> int:
        return plan.num_points() or 1

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        return None
