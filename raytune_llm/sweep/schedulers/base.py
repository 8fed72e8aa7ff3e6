"""Which trials are stopped before their last step, by Ray Tune's schedulers. Time is the trial's own optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

STEP = "step"
"""The report's key that holds the optimizer step: monotonic, kept over restarts, unlike Tune's training_iteration."""

Order = Callable[[Sequence[float]], Sequence[int]]
"""In which order a scheduler should receive values reported at the same time, the lower the better: a permutation of
their indices."""


class Scheduler(Protocol):
    """What conf/sweep/scheduler chooses."""

    replays: bool
    """Whether the reports of finished trials may be replayed to it after a restart; else it starts afresh with the
    unfinished ones."""

    @property
    def order(self) -> Order | None:
        """The order that suits it for reports made at the same time; None where their order doesn't matter to it."""
        ...

    def build(self, metric: str, mode: str, steps: int) -> Any:
        """A Ray Tune scheduler for trials of at most `steps` steps."""
        ...

    def rungs(self, steps: int) -> list[int]:
        """For a forecast: the steps at which it judges trials of at most `steps` steps, rising; a trial is judged by
        its first report from there on."""
        ...

    def survives(self, cost: float, before: Sequence[float]) -> bool:
        """For a forecast: whether a trial of this cost continues after a rung at which these were judged before."""
        ...


def geometric(first: int, factor: int, steps: int) -> list[int]:
    """first, first · factor, first · factor² … below `steps`."""
    found = []
    while first < steps:
        found.append(first)
        first *= factor
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Below which this share of the values is, between the two nearest in proportion; infinite without any."""
    if not values:
        return math.inf
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))
