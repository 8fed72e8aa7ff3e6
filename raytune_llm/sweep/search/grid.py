"""Grid search: every point of the space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.errors import require
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import Point, Tried


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every point of the space."""

    learns = False

    def check(self, plan: Plan) -> None:
        for key, axis in plan.axes.items():
            require(
                bool(axis.choices),
                f"sweep.space.{key}",
                "a range",
                "a list of choices for sweep/search=grid, or sweep/search=random",
            )

    def num_trials(self, plan: Plan) -> int:
        return plan.num_points() or 1

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        if index >= self.num_trials(plan):
            return None
        choices = itertools.product(*(axis.choices for axis in reversed(plan.axes.values())))
        values = next(itertools.islice(choices, index, None))
        return dict(zip(plan.axes, reversed(values), strict=True))
