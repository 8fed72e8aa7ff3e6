"""Curves of a metric over a trial's reports, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from raytune_llm.training.objective import Objective

T = TypeVar("T")

BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 16

Scale = tuple[float, float]
"""Lowest and highest value that a curve can show."""


def sparkline(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """A bar for each value, from `low` to `high`, by default the lowest and the highest of them."""
    low, high = min(values) if low is None else low, max(values) if high is None else high
    heights = [min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0 for value in values]
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


def scale_of(bests: Sequence[float], firsts: Sequence[float], objective: Objective) -> Scale:
    """From the best of all reports to the worst of trials' first ones, so that a trial that diverges flattens no other.
    bests: among them the best finite value that there is."""
    finite = [value for value in bests if math.isfinite(value)]
    if not finite:
        return 0.0, 0.0
    worst = max((value for value in firsts if math.isfinite(value)), key=objective.cost, default=finite[0])
    best = min(finite, key=objective.cost)
    return min(best, worst), max(best, worst)


def curve_line(curve: Sequence[float], scale: Scale, objective: Objective, width: int = CURVE_WIDTH) -> str:
    """A curve as it rises and falls, so many of its values as fit; what isn't finite is drawn as the worst."""
    low, high = scale
    worst = high if objective.lower_is_better else low
    shown = [value if math.isfinite(value) else worst for value in thinned(curve, width)]
    return sparkline(shown, low, high)


def thinned(curve: Sequence[T], most: int) -> list[T]:
    """At most so many values of a curve, evenly spread, the last among them."""
    count = min(len(curve), most)
    return [curve[(place + 1) * len(curve) // count - 1] for place in range(count)]
