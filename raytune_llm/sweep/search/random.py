"""Random search."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.axes import Axis, identity
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import Memory, Point, Tried


@dataclass(frozen=True, kw_only=True)
class Random:
    """Points drawn at random, none twice."""

    trials: int
    """Points to draw; ≥ 1. Where the space has fewer, all of them are tried."""

    learns = False

    def __post_init__(self) -> None:
        require(self.trials >= 1, "sweep.search.trials", self.trials, "≥ 1")

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    def check(self, plan: Plan) -> None:
        return

    def num_trials(self, plan: Plan) -> int:
        count = plan.num_points()
        return self.trials if count is None else min(self.trials, count - sum(map(plan.contains, plan.first)))

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        seen = self._memory.of(plan, tried)
        if index >= self.trials or seen.num_points == plan.num_points():
            return None
        draw = random.Random(f"{seed}:{index}")
        while identity(point := drawn(plan, draw)) in seen.identities:
            pass
        return point


def drawn(plan: Plan, draw: random.Random) -> Point:
    """A random point."""
    point: Point = {}
    for key in plan.points.order:
        if plan.axes[key].is_met(point):
            point[key] = drawn_value(plan.axes[key], draw)
    return {key: point[key] for key in plan.axes if key in point}


def drawn_value(axis: Axis, draw: random.Random) -> Any:
    """A random value of an axis."""
    if axis.values is not None:
        return draw.choice(axis.values)
    if axis.distribution == "log_uniform":
        return min(axis.high, max(axis.low, math.exp(draw.uniform(math.log(axis.low), math.log(axis.high)))))
    return draw.uniform(axis.low, axis.high)
