"""Grid search: every point of the space, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from raytune_llm.errors import require
from raytune_llm.sweep.axes import identity
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import Memory, Point, Tried


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every point of the space, those near the job's own values first."""

    learns = False

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    def check(self, plan: Plan) -> None:
        for key, axis in plan.axes.items():
            require(
                bool(axis.choices),
                f"sweep.space.{key}",
                "a range",
                "a list of choices for sweep/search=grid, or sweep/search=random",
            )

    def num_trials(self, plan: Plan) -> int:
        return (plan.num_points() or 1) - sum(map(plan.contains, plan.first))

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        seen = self._memory.of(plan, tried)
        begin, skipped = seen.state or 0, max(0, index - len(tried))  # proposals of which there is no trial yet
        if not seen.identities:
            begin, skipped = skipped, 0
        for place in range(begin, plan.num_points() or 1):
            point = plan.points[place]
            if identity(point) not in seen.identities:
                if skipped == 0:
                    return point
                skipped -= 1
            elif place == begin:
                begin = seen.state = place + 1
        return None
