"""When a trial has had enough: pure functions over its eval metric, so that every backend decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raytune_llm.training.config import EarlyStopping


def out_of_patience(costs: Sequence[float], stopping: EarlyStopping) -> bool:
    """Whether the last `patience` costs (less is better) brought no improvement of more than min_delta over the best
    before them."""
    if stopping.patience is None:
        return False
    best, since = math.inf, 0
    for cost in costs:
        improved = math.isfinite(cost) and (cost < best - stopping.min_delta or best == math.inf)
        since = 0 if improved else since + 1
        best = cost if improved else best
    return since >= stopping.patience


def diverged(values: Sequence[float]) -> bool:
    """Whether the last value is not a finite number; nothing after it can be."""
    return bool(values) and not math.isfinite(values[-1])
