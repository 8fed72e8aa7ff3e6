"""By which metric trials are judged and in which direction: the one place that decides what is best so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from raytune_llm.evaluation.terms import LOSS

ANSWER_SECONDS = "time/answer_seconds"
"""Of time/seconds, what answering eval records took."""
DRIFT_SECONDS = "time/drift_seconds"
"""Of time/seconds, what measuring drift took."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Metrics of a trial at an evaluation, named as in docs (train/loss, eval/loss, cost/gpu_hours, …)."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Objective:
    """A metric and its direction."""

    metric: str
    lower_is_better: bool

    @property
    def mode(self) -> str:
        """As Ray Tune calls the direction."""
        return "min" if self.lower_is_better else "max"

    @property
    def worst(self) -> float:
        """A value that nothing is worse than."""
        return math.inf if self.lower_is_better else -math.inf

    def cost(self, value: float) -> float:
        """A value of the metric so that less is better, infinite where it isn't finite."""
        if not math.isfinite(value):
            return math.inf
        return value if self.lower_is_better else -value

    def cost_of(self, report: Report) -> float:
        return self.cost(report.metrics[self.metric])

    def order_of(self, report: Report) -> tuple[float, float]:
        """By which reports are ordered, the best first: the metric's cost and, where that is equal, as answers to a few
        records often are, the loss."""
        return self.cost_of(report), report.metrics.get(LOSS, 0.0)

    def best(self, reports: Iterable[Report], *, up_to: float = math.inf) -> Report | None:
        """The report with the best finite value at or before step `up_to` (what a trial of that many steps would have
        kept), of equals that with the lowest loss, then the earliest; the first when none is finite, None when there is
        none."""
        return min((report for report in reports if report.step <= up_to), key=self.order_of, default=None)
