"""Which points of the space are tried: every one (grid), random ones, or those that Optuna's TPE proposes.

Each gives Ray Tune a parameter space, a searcher and a number of samples; nothing is searched here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.input_error import require
from raytune_llm.sweep.space import Axis, Plan


class Search(Protocol):
    """What conf/sweep/search chooses."""

    def param_space(self, plan: Plan) -> dict[str, Any]:
        """Ray Tune's search space by dotted key."""
        ...

    def num_samples(self) -> int: ...

    def num_trials(self, plan: Plan) -> int: ...

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        """A Ray Tune search algorithm, or None for Tune's own variant generator."""
        ...


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every point of the space."""

    def param_space(self, plan: Plan) -> dict[str, Any]:
        from ray import tune

        for key, axis in plan.axes.items():
            require(
                bool(axis.choices),
                f"sweep.space.{key}",
                "a range",
                "a list of choices for sweep/search=grid, or sweep/search=random",
            )
        return {key: tune.grid_search(list(axis.choices)) for key, axis in plan.axes.items()}

    def num_samples(self) -> int:
        return 1

    def num_trials(self, plan: Plan) -> int:
        return plan.num_points() or 1

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        return None


@dataclass(frozen=True, kw_only=True)
class Random:
    """Points drawn at random."""

    trials: int
    """Trials to run; ≥ 1."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, "sweep.search.trials", self.trials, "≥ 1")

    def param_space(self, plan: Plan) -> dict[str, Any]:
        return {key: domain(axis) for key, axis in plan.axes.items()}

    def num_samples(self) -> int:
        return self.trials

    def num_trials(self, plan: Plan) -> int:
        return self.trials

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(random_state=seed)


@dataclass(frozen=True, kw_only=True)
class Optuna(Random):
    """Points proposed by Optuna's TPE sampler from the results so far."""

    def searcher(self, metric: str, mode: str, seed: int) -> Any:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=metric, mode=mode, seed=seed)


def domain(axis: Axis) -> Any:
    """An axis as a domain of Ray Tune."""
    from ray import tune

    if axis.choices:
        return tune.choice(list(axis.choices))
    if axis.distribution == "log_uniform":
        return tune.loguniform(axis.low, axis.high)
    if axis.distribution == "int_uniform":
        return tune.randint(int(axis.low), int(axis.high) + 1)
    return tune.uniform(axis.low, axis.high)
