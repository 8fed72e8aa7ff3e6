"""Which trial won, and the result at each point of the space, the folded steps axis unfolded again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.evaluation.terms import DRIFT, LOSS
from raytune_llm.sweep.plan import BASE, STEPS, Plan
from raytune_llm.training.config import Outcome
from raytune_llm.training.objective import Objective, Report

CUT_SHORT = ("scheduler", "stopped", "budget", "unresolvable", "cancelled")
"""How trials end that more steps might have made better."""


@dataclass(frozen=True)
class Row:
    """A point of the space and its result."""

    trial: str
    values: dict[str, Any]
    best: Report
    ended: str
    pareto: bool = False
    """Whether no other point of its base is better by the metric without more drift, or has less without being worse;
    False where drift isn't measured."""


def winner(outcomes: Sequence[Outcome], objective: Objective) -> Outcome:
    """The trial with the best value of the metric, of equals the one with the lowest loss. Raises InputError when none
    has a finite one, RuntimeError when that is because a trial failed."""
    worst = (math.inf, math.inf)
    orders = [worst if outcome.best is None else objective.order_of(outcome.best) for outcome in outcomes]
    if not math.isfinite(min(orders, default=worst)[0]):
        endings = "; ".join(f"{outcome.trial.id} {outcome.ended}" for outcome in outcomes)
        found = f"no trial reached a finite {objective.metric}: {endings}"
        if any(outcome.ended.startswith("failed") for outcome in outcomes):
            raise RuntimeError(found)
        raise InputError(f"{found}; try smaller values of tuning.learning_rate_multiplier")
    return outcomes[orders.index(min(orders))]


def lowest_loss(outcomes: Sequence[Outcome]) -> tuple[Outcome, Report] | None:
    """The trial with the lowest eval/loss of all reports, and that report; None where no report has a finite one."""
    found = [(outcome, report) for outcome in outcomes for report in outcome.reports]
    finite = [pair for pair in found if math.isfinite(pair[1].metrics.get(LOSS, math.inf))]
    return min(finite, key=lambda pair: pair[1].metrics[LOSS], default=None)


def leaderboard(outcomes: Sequence[Outcome], plan: Plan, objective: Objective) -> list[Row]:
    """All points that have a result, best first. A free steps axis is unfolded: a point of N steps shows the best of
    its trial's first N steps, and a trial that was stopped before N has no such point. One whose best report came after
    the last point that it reached has a row for the steps that it took."""
    rows = []
    for outcome in outcomes:
        if outcome.best is None:
            continue
        if not plan.steps_are_free:
            rows.append(Row(outcome.trial.id, dict(outcome.trial.values), outcome.best, outcome.ended))
            continue
        last = outcome.reports[-1].step
        reached = [steps for steps in plan.milestones if last >= steps or outcome.ended not in CUT_SHORT]
        if max(reached, default=0) < outcome.best.step:
            reached.append(last)
        for steps in reached:
            best = objective.best(outcome.reports, up_to=steps)
            if best is not None:
                rows.append(Row(outcome.trial.id, {**outcome.trial.values, STEPS: steps}, best, outcome.ended))
    rows = sorted(rows, key=lambda row: (objective.order_of(row.best), row.values.get(STEPS, 0)))
    return [replace(row, pareto=is_on_front(row, rows, objective)) for row in rows]


def is_on_front(row: Row, rows: Sequence[Row], objective: Objective) -> bool:
    """Whether a row is on the front of metric and drift of all rows of its base; a token is another one in others."""

    def costs(row: Row) -> tuple[float, float]:
        return objective.cost_of(row.best), row.best.metrics.get(DRIFT, math.nan)

    own = costs(row)
    if not all(map(math.isfinite, own)):
        return False
    others = [costs(other) for other in rows if other.values.get(BASE) == row.values.get(BASE)]
    return not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in others)
