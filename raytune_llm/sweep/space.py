"""What a sweep varies: the space of trials, and whether its steps axis is free.

With a schedule that doesn't look at the horizon, one run evaluated at each listed step count IS every one of those
trials: the steps axis is folded into it and costs nothing. With a decaying schedule they are trials of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.errors import require
from raytune_llm.jobs.schema import TrainJob

STEPS = "tuning.steps"
DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: a space, how it is searched, what is stopped early."""

    space: dict[str, Any]
    """Nested keys of the job, each with a list of choices or {min, max, distribution}; null takes a key out of the
    space."""
    search: Any
    """Which points of the space are tried (conf/sweep/search)."""
    backend: Any
    """How trials are trained (conf/sweep/backend)."""
    scheduler: Any
    """Which trials are stopped before their last step (conf/sweep/scheduler)."""
    max_concurrent: int | None
    """Trials at the same time; null = as many as the cluster's CPUs or GPUs hold."""

    def __post_init__(self) -> None:
        require(
            self.max_concurrent is None or self.max_concurrent >= 1,
            "sweep.max_concurrent",
            self.max_concurrent,
            "≥ 1 or null",
        )
        require(bool(self.axes()), "sweep.space", self.space, "at least one key with a list of choices or a range")

    def axes(self) -> dict[str, Axis]:
        """The axes by dotted key, in the order written."""
        return dict(_axes(self.space, ""))

    def candidates(self) -> Iterator[tuple[str, list[Any]]]:
        """Each key with the values to check before anything starts: all choices, or both ends of a range."""
        for key, axis in self.axes().items():
            yield key, list(axis.choices) or [axis.low, axis.high]


@dataclass(frozen=True)
class Axis:
    """One key's values: choices, or a range."""

    choices: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    distribution: str = "uniform"


@dataclass(frozen=True)
class Plan:
    """The axes that need trials of their own, and the step counts at which each of them is evaluated."""

    axes: dict[str, Axis]
    milestones: tuple[int, ...]
    """Step counts whose result is wanted of every trial; the last one is how long a trial may run. Empty: steps is an
    axis."""

    @property
    def steps_are_free(self) -> bool:
        return len(self.milestones) > 1

    def num_points(self) -> int | None:
        """Points of the full grid of the axes; None when one of them is a range."""
        total = 1
        for axis in self.axes.values():
            total *= len(axis.choices)
        return total or None

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial's job differs in: the point, and the longest milestone where steps are folded."""
        return {**point, STEPS: self.milestones[-1]} if self.milestones else dict(point)

    def sentence(self) -> str:
        """What was decided, for the user."""
        if self.steps_are_free:
            listed = ", ".join(map(str, self.milestones))
            return f"steps {listed} are free: the schedule is constant, so one run evaluated at each is all of those"
        if not self.milestones:
            return "steps is an axis of its own: trials of different length differ, by their schedule or as a range"
        return f"every trial runs {self.milestones[0]} steps"


def plan(job: TrainJob, sweep: Sweep) -> Plan:
    """Fold the steps axis where it is free; order the others from the job's own value outward, as schedulers that stop
    trials early stop more when good ones come first."""
    axes = sweep.axes()
    axes = {key: replace(axis, choices=outward(axis.choices, _own(job, key.split(".")))) for key, axis in axes.items()}
    steps = axes.get(STEPS)
    horizon_matters = job.tuning.schedule.looks_at_horizon or "tuning.schedule" in axes
    if steps is None:
        return Plan(axes, (job.tuning.steps,))
    if horizon_matters and len(steps.choices) != 1:
        return Plan(axes, ())
    if not steps.choices:
        return Plan(axes, ())
    return Plan({key: axis for key, axis in axes.items() if key != STEPS}, tuple(sorted(set(steps.choices))))


def outward(choices: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """Numbers by their distance from `own`, by ratio where all are positive; anything else as it stands."""
    numbers = (*choices, own)
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return choices
    if all(number > 0 for number in numbers):
        return tuple(sorted(choices, key=lambda choice: abs(math.log(choice / own))))
    return tuple(sorted(choices, key=lambda choice: abs(choice - own)))


def _own(node: Any, path: list[str]) -> Any:
    """The job's value of a key, None where it has none."""
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
    return node


def _axes(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Axis]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if value is None:
            continue
        if isinstance(value, Mapping) and "min" not in value and "max" not in value:
            yield from _axes(value, f"{key}.")
        elif isinstance(value, Mapping):
            yield key, _range(key, value)
        else:
            choices = value if isinstance(value, list) else [value]
            require(bool(choices), f"sweep.space.{key}", value, "a list with at least one value")
            yield key, Axis(choices=tuple(dict.fromkeys(choices)))


def _range(key: str, value: Mapping[str, Any]) -> Axis:
    where = f"sweep.space.{key}"
    require(
        set(value) <= {"min", "max", "distribution"} and {"min", "max"} <= set(value),
        where,
        dict(value),
        "{min, max, distribution}",
    )
    low, high, distribution = value["min"], value["max"], value.get("distribution", "uniform")
    require(distribution in DISTRIBUTIONS, f"{where}.distribution", distribution, ", ".join(DISTRIBUTIONS))
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    require(numbers and low < high, where, dict(value), "numbers with min < max")
    require(distribution != "log_uniform" or low > 0, where, dict(value), "min > 0 for log_uniform")
    return Axis(low=low, high=high, distribution=distribution)
