"""Optuna's TPE (tree-structured Parzen estimators; Bergstra et al., 2011; Watanabe, 2023, arXiv 2304.11127): values are
drawn where good trials are denser than the others. Trials that still run count as others, so that those that run
together differ."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.sweep.axes import Axis, Point, identity, is_number
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.search.base import Tried
from raytune_llm.sweep.search.random import Random

MOST_RANDOM = 10
"""Results before the first proposal that is no random one; a third of the trials where these are fewer than 30."""
TRIES = 8
"""Proposals that were tried already, before a random one takes their place."""


@dataclass(frozen=True, kw_only=True)
class Optuna(Random):
    """Points proposed by Optuna's TPE sampler from the results so far, those of points that others asked for included.
    The first ones are random."""

    learns = True

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        point = super().propose(plan, index, tried, seed)
        if point is None:
            return None
        seen = self._memory.of(plan, tried)
        if seen.state is None:
            seen.state = Study(plan)
        seen.state.update(tried)
        if seen.state.num_results < min(MOST_RANDOM, 1 + self.trials // 3):
            return point
        proposals = seen.state.proposals(random.Random(f"{seed}:{index}").getrandbits(32))
        return next((found for found in proposals if identity(found) not in seen.identities), point)


class Study:
    """An Optuna study that has the results of the trials so far."""

    def __init__(self, plan: Plan) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan = plan
        self.num_results = 0
        self._study = optuna.create_study()
        self._running: dict[int, int] = {}
        """Place among all trials → number in the study, of those that aren't over."""
        self._places = self._numbers = 0

    def update(self, tried: Sequence[Tried]) -> None:
        """Learn what there is since the last time."""
        for place in [place for place in self._running if tried[place].is_over]:
            self._tell(self._running.pop(place), tried[place].cost)
        for place in range(self._places, len(tried)):
            self._add(place, tried[place])
        self._places = len(tried)

    def proposals(self, seed: int) -> Iterator[Point]:
        """Points to try, each as if the one before it were running."""
        from optuna.samplers import TPESampler

        self._study.sampler = TPESampler(seed=seed, n_startup_trials=0)
        asked = []
        try:
            for _ in range(TRIES):
                asked.append(trial := self._study.ask())
                yield self._suggested(trial)
        finally:
            self._numbers += len(asked)
            for trial in asked:
                self._tell(trial.number, None)

    def _suggested(self, trial: Any) -> Point:
        point: Point = {}
        for key in self.plan.points.order:
            if self.plan.axes[key].is_met(point):
                point[key] = suggested(trial, key, self.plan.axes[key])
        return {key: point[key] for key in self.plan.axes if key in point}

    def _add(self, place: int, trial: Tried) -> None:
        from optuna.trial import TrialState, create_trial

        point = self.plan.completed(trial.values)
        if not self.plan.contains(point):
            return
        params = {key: internal(self.plan.axes[key], value) for key, value in point.items()}
        distributions = {key: distribution(self.plan.axes[key]) for key in point}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        self._numbers += 1
        if trial.is_over:
            self._tell(self._numbers - 1, trial.cost)
        else:
            self._running[place] = self._numbers - 1

    def _tell(self, number: int, cost: float | None) -> None:
        from optuna.trial import TrialState

        if cost is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, math.inf if math.isnan(cost) else cost)
            self.num_results += 1


def ordered(axis: Axis) -> list[Any]:
    """The choices, numbers rising."""
    return sorted(axis.choices) if has_order(axis) else list(axis.choices)


def has_order(axis: Axis) -> bool:
    """Whether the choices are numbers, of which neighbours are alike."""
    return all(map(is_number, axis.choices))


def internal(axis: Axis, value: Any) -> Any:
    """A value as the study has it: a choice by its place."""
    return ordered(axis).index(value) if axis.choices else value


def distribution(axis: Axis) -> Any:
    """Optuna's description of an axis, as `suggested` asks for it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        last = len(axis.choices) - 1
        return IntDistribution(0, last) if has_order(axis) else CategoricalDistribution(range(last + 1))
    if axis.distribution == "int_uniform":
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.distribution == "log_uniform")


def suggested(trial: Any, key: str, axis: Axis) -> Any:
    """The value of an axis that the study proposes."""
    if axis.choices:
        last = len(axis.choices) - 1
        has_places = has_order(axis)
        place = trial.suggest_int(key, 0, last) if has_places else trial.suggest_categorical(key, range(last + 1))
        return ordered(axis)[place]
    if axis.distribution == "int_uniform":
        return trial.suggest_int(key, int(axis.low), int(axis.high))
    return trial.suggest_float(key, axis.low, axis.high, log=axis.distribution == "log_uniform")
