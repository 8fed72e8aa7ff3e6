"""Which points of the space are tried: every one (grid), random ones, or those that Optuna's TPE proposes.

Each gives Ray Tune a parameter space, a searcher and a number of samples; nothing is searched here.
"""

from __future__ import annotations

from typing import Any, Protocol

from raytune_llm.sweep.plan import Axis, Plan


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
