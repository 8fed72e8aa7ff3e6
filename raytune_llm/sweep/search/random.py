"""Random search."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.plan import Axis, Plan
from raytune_llm.sweep.search.base import Point, Tried


@dataclass(frozen=True, kw_only=True)
class Random:
    """Points drawn at random."""

    trials: int
    """Trials to run; ≥ 1."""

    learns = False

    def __post_init__(self) -> None:
        require(self.trials >= 1, "sweep.search.trials", self.trials, "≥ 1")

    def check(self, plan: Plan) -> None:
        return

    def num_trials(self, plan: Plan) -> int:
        return self.trials

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        if index >= self.trials:
            return None
        draw = random.Random(f"{seed}:{index}")
        return {key: drawn(axis, draw) for key, axis in plan.axes.items()}


def drawn(axis: Axis, draw: random.Random) -> Any:
    """A value of an axis."""
    if axis.choices:
        return draw.choice(axis.choices)
    if axis.distribution == "log_uniform":
        return math.exp(draw.uniform(math.log(axis.low), math.log(axis.high)))
    if axis.distribution == "int_uniform":
        return draw.randint(int(axis.low), int(axis.high))
    return draw.uniform(axis.low, axis.high)
