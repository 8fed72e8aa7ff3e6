"""When a trial has had enough: pure functions over the values of its eval metric, so that every backend decides the
same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raytune_llm.training.config import EarlyStopping


def best_index(values: Sequence[float], lower: bool) -> int:
    """Index of the best finite value, the earliest of equals; 0 when none is finite."""
    sign = 1 if lower else -1
    return min(range(len(values)), key=lambda i: sign * values[i] if math.isfinite(values[i]) else math.inf)


def out_of_patience(values: Sequence[float], stopping: EarlyStopping, lower: bool) -> bool:
    """Whether the last `patience` values brought no improvement of more than min_delta over the best before them."""
    if stopping.patience is None:
        return False
    best, since = math.inf, 0
    for value in values:
        cost = value if lower else -value
        improved = math.isfinite(cost) and (cost < best - stopping.min_delta or best == math.inf)
        since = 0 if improved else since + 1
        best = cost if improved else best
    return since >= stopping.patience


def diverged(values: Sequence[float]) -> bool:
    """Whether the last value is not a finite number; nothing after it can be."""
    return bool(values) and not math.isfinite(values[-1])
