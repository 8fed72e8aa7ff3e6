"""Which of the reports that a pack makes together is told first.

Trials of a pack reach an evaluation at the same step boundary. A scheduler such as ASHA judges each report by those it
has been told before, so the order decides who goes on; left to chance, a sweep costs half or twice as much. Told one
at a time, each once the one before it is decided, in an order of the scheduler's choice, they are judged as if it knew
them all.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from raytune_llm.job import Report

Order = Callable[[Sequence[float]], Sequence[int]]
"""In which order to tell values that were found together, the lower the better; a permutation of their indices."""

PATIENCE_SECONDS = 2.0
"""How long the others wait for the decision on a report; its proxy may have died."""


class Turns:
    """A line of trials whose reports are to be told one after another. Without an order there is no line."""

    def __init__(self, order: Order | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._order, self._clock = order, clock
        self._line: deque[str] = deque()
        self._since = 0.0
        """When the first in line got its turn."""

    def add(self, reports: Iterable[tuple[str, Report]], metric: str, *, lower_is_better: bool) -> None:
        """Line up these trials; those at a lower step come first."""
        if self._order is None:
            return
        if not self._line:
            self._since = self._clock()
        sign = 1 if lower_is_better else -1
        by_step: dict[int, list[tuple[str, float]]] = {}
        for trial_id, report in reports:
            value = sign * report.metrics[metric]
            by_step.setdefault(report.step, []).append((trial_id, math.inf if math.isnan(value) else value))
        for _, found in sorted(by_step.items()):
            self._line.extend(found[place][0] for place in self._order([value for _, value in found]))

    def has(self, trial_id: str) -> bool:
        """Whether its report may be told now."""
        if self._line and self._clock() - self._since > PATIENCE_SECONDS:
            self.end(self._line[0])
        return trial_id not in self._line or self._line[0] == trial_id

    def end(self, trial_id: str) -> None:
        """Its report has been decided, or nobody waits for it any more."""
        if self._line and self._line[0] == trial_id:
            self._since = self._clock()
        if trial_id in self._line:
            self._line.remove(trial_id)
