"""Which trials are stopped before their last step, by Ray Tune's schedulers. Time is the trial's own optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

STEP = "step"
"""The report's key that holds the optimizer step: monotonic, kept over restarts, unlike Tune's training_iteration."""

Order = Callable[[Sequence[float]], Sequence[int]]
"""In which order to tell values that were found together, the lower the better: a permutation of their indices."""


class Scheduler(Protocol):
    """What conf/sweep/scheduler chooses."""

    replays: bool
    """Whether it may be told of finished trials again after a restart; else it begins anew with the unfinished
    ones."""

    @property
    def order(self) -> Order | None:
        """In which order it is best told reports that come together; None where that says nothing to it."""
        ...

    def build(self, metric: str, mode: str, steps: int) -> Any:
        """A Ray Tune scheduler for trials of at most `steps` steps."""
        ...
