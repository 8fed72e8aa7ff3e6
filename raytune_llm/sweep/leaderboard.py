"""Which trial won, and what each point of the space came to, the folded steps axis unfolded again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.evaluation.terms import lower_is_better
from raytune_llm.sweep.space import STEPS, Plan
from raytune_llm.training.config import Outcome, Report
from raytune_llm.training.history import History


@dataclass(frozen=True)
class Row:
    """A point of the space and what it came to."""

    trial: str
    values: dict[str, Any]
    best: Report
    ended: str


def winner(outcomes: Sequence[Outcome], metric: str) -> Outcome:
    """The trial with the best value of the metric. Raises RuntimeError when none has a finite one."""
    sign = 1 if lower_is_better(metric) else -1
    values = [(sign * o.best.metrics[metric], o) for o in outcomes if o.best is not None]
    finite = [(value, outcome) for value, outcome in values if math.isfinite(value)]
    if not finite:
        endings = "; ".join(f"{outcome.trial.id} {outcome.ended}" for outcome in outcomes)
        raise RuntimeError(f"no trial came to a finite {metric}: {endings}")
    return min(finite, key=lambda pair: pair[0])[1]


def leaderboard(outcomes: Sequence[Outcome], plan: Plan, metric: str) -> list[Row]:
    """All points that got a result, best first. A free steps axis is unfolded: a point of N steps shows the best of its
    trial's first N steps, and a trial stopped before N has no such point."""
    sign = 1 if lower_is_better(metric) else -1
    rows = []
    for outcome in outcomes:
        if outcome.best is None:
            continue
        history = History(metric=metric, reports=list(outcome.reports))
        if not plan.steps_are_free:
            rows.append(Row(outcome.trial.id, dict(outcome.trial.values), outcome.best, outcome.ended))
            continue
        for steps in plan.milestones:
            best = history.up_to(steps)
            reached = history.last.step >= steps or outcome.ended != "scheduler"
            if best is not None and reached:
                rows.append(Row(outcome.trial.id, {**outcome.trial.values, STEPS: steps}, best, outcome.ended))
    return sorted(rows, key=lambda row: (sign * row.best.metrics[metric], row.values.get(STEPS, 0)))
