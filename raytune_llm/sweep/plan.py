"""Which trials a sweep's space needs, and whether its steps axis is free.

With a schedule that doesn't look at the horizon, one run evaluated at each listed step count IS every one of those
trials: the steps axis is folded into it and costs nothing. With a decaying schedule they are trials of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.training.config import TrialConfig, value_of

STEPS = "tuning.steps"
SIZE = "tuning.adapter_size"
BATCH_SIZE = "tuning.batch_size"
BASE = "model"
SWEEPABLE = ("tuning", "adapter", "method", "scaling")
"""Groups of keys that trials may differ in, besides the seed; whatever else a job has, all of them share."""


@dataclass(frozen=True)
class Axis:
    """One key's values: choices, or a range."""

    choices: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    distribution: str = "uniform"

    @property
    def candidates(self) -> list[Any]:
        """The values to check before anything starts: all choices, or both ends of the range."""
        return list(self.choices) or [self.low, self.high]


@dataclass(frozen=True)
class Plan:
    """The axes that need trials of their own, and the step counts at which each trial is evaluated."""

    axes: dict[str, Axis]
    milestones: tuple[int, ...]
    """Step counts at which every trial is evaluated; the last one is how long a trial may run. Empty: steps is an
    axis."""

    @property
    def steps_are_free(self) -> bool:
        return len(self.milestones) > 1

    def candidates(self, key: str) -> list[Any]:
        """Those of an axis; none where there is no such axis."""
        return self.axes[key].candidates if key in self.axes else []

    def most_steps(self) -> int:
        """The most steps any trial may run."""
        return self.milestones[-1] if self.milestones else int(max(self.candidates(STEPS)))

    def num_points(self) -> int | None:
        """Points of the full grid of the axes; None when one of them is a range."""
        total = 1
        for axis in self.axes.values():
            total *= len(axis.choices)
        return total or None

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial's config differs in: the point, and the longest milestone where steps are folded."""
        return {**point, STEPS: self.milestones[-1]} if self.milestones else dict(point)

    def sentence(self) -> str:
        """The plan's lengths of trials, for the terminal."""
        if self.steps_are_free:
            listed = ", ".join(map(str, self.milestones))
            return f"the steps axis is free: with a constant schedule one trial gives the results at steps {listed}"
        if not self.milestones:
            return "every step count is a trial of its own: tuning.schedule decays, or the steps are a range"
        return f"every trial runs {self.milestones[0]} steps"


def make_plan(config: TrialConfig, axes: Mapping[str, Axis]) -> Plan:
    """Fold the steps axis where it is free; order the others from the job's own value outward, as schedulers that stop
    trials early stop more when good ones come first. Raises InputError for an axis that trials can't differ in."""
    for key in axes:
        check_axis(config, key)
    axes = {key: replace(axis, choices=outward(axis.choices, value_of(config, key))) for key, axis in axes.items()}
    steps = axes.get(STEPS)
    horizon_matters = config.tuning.schedule.looks_at_horizon or "tuning.schedule" in axes
    if steps is None:
        return Plan(axes, (config.tuning.steps,))
    if horizon_matters and len(steps.choices) != 1:
        return Plan(axes, ())
    if not steps.choices:
        return Plan(axes, ())
    return Plan({key: axis for key, axis in axes.items() if key != STEPS}, tuple(sorted(set(steps.choices))))


def check_axis(config: TrialConfig, key: str) -> None:
    """Refuse an axis that would change nothing, that no trial has, or that makes trials incomparable. Raises
    InputError."""
    group, _, rest = key.partition(".")
    if key != "seed" and not (group in SWEEPABLE and rest):
        raise InputError(
            f"sweep.space.{key} is not allowed: all trials of a sweep share one {key}; allowed: seed and keys of "
            f"{', '.join(SWEEPABLE)}"
        )
    if key == "method.metric":
        raise InputError(f"sweep.space.{key} is not allowed: trials are compared by one metric; set {key} instead")
    value_of(config, key)


def outward(choices: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """Numbers by their distance from `own`, by ratio where all are positive; anything else in the order given."""
    numbers = (*choices, own)
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return choices
    if all(number > 0 for number in numbers):
        return tuple(sorted(choices, key=lambda choice: abs(math.log(choice / own))))
    return tuple(sorted(choices, key=lambda choice: abs(choice - own)))
