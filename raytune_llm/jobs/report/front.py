"""The trials that no other one beats in both cost and result (Pareto front), and curves with fewer points."""

from __future__ import annotations

from collections.abc import Sequence

MOST_OF_ALL = 24_000
"""Points of all curves of a figure."""
FEWEST = 40
"""Points that a curve keeps in any case."""


def pareto(costs: Sequence[float], results: Sequence[float], *, lower_is_better: bool) -> list[int]:
    """Places of those on the front, the cheapest first."""
    sign = 1 if lower_is_better else -1
    best, found = float("inf"), []
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], sign * results[i])):
        if sign * results[place] < best:
            best = sign * results[place]
            found.append(place)
    return found


def thinned(count: int, num_curves: int, keep: Sequence[int] = ()) -> list[int]:
    """Places of a curve's points that are drawn, where so many curves share a figure: evenly spread, the ends and
    `keep` among them."""
    most = max(FEWEST, MOST_OF_ALL // max(1, num_curves))
    if count <= most:
        return list(range(count))
    even = {round(i * (count - 1) / (most - 1)) for i in range(most)}
    return sorted(even | {place for place in keep if 0 <= place < count})
