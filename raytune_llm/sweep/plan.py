"""Which trials a sweep's space needs, and whether its steps axis is free.

With a schedule that doesn't look at the horizon, one run evaluated at each listed step count IS every one of those
trials: the steps axis is folded into it and costs nothing. With a decaying schedule they are trials of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from raytune_llm.errors import InputError, require
from raytune_llm.sweep.axes import ABSENT, Axis, Point, Points, flat, identity, outward, resolved
from raytune_llm.training.config import TrialConfig, value_of

STEPS = "tuning.steps"
SIZE = "tuning.adapter_size"
BATCH_SIZE = "tuning.batch_size"
SUBSET = "data.subset"
BASE = "model"
SWEEPABLE = ("tuning.", "adapter.", "method.", "scaling.", "data.weights.")
"""What begins the keys that trials may differ in, besides the seed and the share of the records; whatever else a job
has, all of them share."""
LARGER_BATCHES = "they are compared at equal steps, at which those of larger batches have seen more records"


@dataclass(frozen=True)
class Plan:
    """The axes that need trials of their own, and the step counts at which each trial is evaluated."""

    axes: dict[str, Axis]
    milestones: tuple[int, ...]
    """Step counts at which every trial is evaluated; the last one is how long a trial may run. Empty: steps is an
    axis."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The job's values of the axes and of the keys of `first`."""
    first: tuple[Point, ...] = ()
    """Points that the user wants to be tried before all others; they may have keys that aren't axes."""

    @property
    def steps_are_free(self) -> bool:
        return len(self.milestones) > 1

    @property
    def keys(self) -> list[str]:
        """Keys in which trials may differ, besides the steps where they are free."""
        return list(dict.fromkeys([*self.axes, *(key for point in self.first for key in point)]))

    @cached_property
    def points(self) -> Points:
        """All points of the axes."""
        return Points(self.axes)

    def candidates(self, key: str) -> list[Any]:
        """Values of a key to check before anything starts: those of its axis and of `first`, and the job's own where a
        trial may lack the key. None where no trial differs in it."""
        axis, given = self.axes.get(key), [point[key] for point in self.first if key in point]
        if axis is None and not given:
            return []
        own = [] if axis is not None and not axis.when else [self.own[key]]
        return [*(axis.candidates if axis else ()), *given, *own]

    def combinations(self, keys: Iterable[str]) -> list[Point]:
        """What trials may have together of these keys; of real numbers the ends of their range."""
        wanted, needed = set(keys) & self.axes.keys(), dict[str, Axis]()
        while wanted:
            key = wanted.pop()
            needed[key] = replace(self.axes[key], choices=tuple(self.axes[key].values or self.axes[key].candidates))
            wanted |= needed[key].when.keys() - needed.keys()
        found = ({key: point[key] for key in keys if key in point} for point in (*Points(needed), *self.first))
        return list({identity(point): point for point in found}.values())

    def most_steps(self) -> int:
        """The most steps any trial may run."""
        return self.milestones[-1] if self.milestones else int(max(self.candidates(STEPS)))

    def num_points(self) -> int | None:
        """Points of the full grid of the axes; None when one of them has real numbers."""
        return self.points.count

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial's config differs in: the point, and the longest milestone where steps are folded and the point
        has none of its own."""
        return {STEPS: self.milestones[-1], **point} if self.milestones else dict(point)

    def completed(self, values: Mapping[str, Any]) -> Point:
        """The whole point that some values mean: the job's own for each axis that they lack, in the order of the axes,
        then whatever else they have that isn't the job's own."""
        point: Point = {}
        given = {**self.own, **values}
        for key in self.points.order:
            if key in given and self.axes[key].is_met(point):
                point[key] = given[key]
        others = {key for key in values.keys() - point.keys() if values[key] != self.own.get(key, ABSENT)}
        return {key: given[key] for key in (*self.axes, *values) if key in point or key in others}

    def contains(self, point: Mapping[str, Any]) -> bool:
        """Whether a completed point is one of the space."""
        met = {key for key, axis in self.axes.items() if axis.is_met(point)}
        return point.keys() == met and all(self.axes[key].holds(value) for key, value in point.items())

    def sentence(self) -> str:
        """The plan's lengths of trials, for the terminal."""
        batches = f"; {LARGER_BATCHES}" if len(self.candidates(BATCH_SIZE)) > 1 else ""
        if self.steps_are_free:
            listed = ", ".join(map(str, self.milestones))
            return (
                "the steps axis is free: with a constant schedule one trial gives the results at steps "
                f"{listed}{batches}"
            )
        if not self.milestones:
            return f"every step count is a trial of its own: tuning.schedule decays, or the steps are a range{batches}"
        return f"every trial runs {self.milestones[0]} steps{batches}"


def make_plan(config: TrialConfig, axes: Mapping[str, Axis], first: Sequence[Mapping[str, Any]] = ()) -> Plan:
    """Fold the steps axis where it is free; order the others from the job's own value outward, as schedulers that stop
    trials early stop more when good ones come first.

    first: as in sweep.first.

    Raises:
        InputError: an axis, or a key of a first point, that trials can't differ in; a condition that can't be met.
    """
    for key in axes:
        check_axis(config, key)
    own = {key: own_value(config, key) for key in axes}
    for key, axis in axes.items():
        whole = axis.values is not None or not isinstance(own[key], int)
        require(whole, f"sweep.space.{key}.distribution", axis.distribution, "int_uniform, for whole numbers")
    axes = {key: replace(axis, choices=outward(axis.choices, own[key])) for key, axis in axes.items()}
    milestones = folded_steps(config, axes)
    check_steps(axes, is_folded=bool(milestones))
    named = {parent for axis in axes.values() for parent in axis.when} - own.keys()
    axes = resolved(axes, own | {key: own_value(config, key) for key in named})
    if milestones:
        axes = {key: axis for key, axis in axes.items() if key != STEPS}
    plan = Plan(axes, milestones, own)
    points = [first_point(config, plan, values, f"sweep.first[{place}]") for place, values in enumerate(first)]
    own |= {key: own_value(config, key) for point in points for key in point}
    plan = replace(plan, own=own)
    completed = {identity(point): point for point in map(plan.completed, points)}
    return replace(plan, first=tuple(completed.values()))


def folded_steps(config: TrialConfig, axes: Mapping[str, Axis]) -> tuple[int, ...]:
    """The step counts at which every trial is evaluated; none where they are trials of their own."""
    steps = axes.get(STEPS)
    if steps is None:
        return (config.tuning.steps,)
    horizon_matters = config.tuning.schedule.looks_at_horizon or "tuning.schedule" in axes
    if not steps.choices or (horizon_matters and len(steps.choices) != 1):
        return ()
    return tuple(sorted(set(steps.choices)))


def check_steps(axes: Mapping[str, Axis], *, is_folded: bool) -> None:
    """Refuse conditions that would give trials different milestones. Raises InputError."""
    where, reason = f"sweep.space.{STEPS}", "all trials are evaluated at the same steps, which are compared"
    if STEPS in axes and axes[STEPS].when:
        raise InputError(f"{where}.when is not allowed: {reason}")
    named = next((key for key, axis in axes.items() if STEPS in axis.when), None)
    if STEPS in axes and is_folded and named:
        raise InputError(f"sweep.space.{named}.when.{STEPS} is not allowed: {reason}")


def first_point(config: TrialConfig, plan: Plan, values: Mapping[str, Any], where: str) -> Point:
    """A point that the user wants to be tried, by dotted key. One of the steps at which every trial is evaluated says
    nothing, and is left out. Raises InputError."""
    point = dict(flat(values))
    for key in point:
        check_axis(config, key, f"{where}: ")
    if plan.milestones and (steps := point.pop(STEPS, plan.milestones[-1])) not in plan.milestones:
        listed = " or ".join(map(str, plan.milestones))
        raise InputError(f"{where}: {STEPS}={steps} is not allowed: every trial is evaluated at {listed} steps")
    return point


def check_axis(config: TrialConfig, key: str, where: str = "sweep.space.") -> None:
    """Refuse an axis that would change nothing, that no trial has, or that makes trials incomparable; `where` begins
    the message. Raises InputError."""
    check_sweepable(key, where)
    value_of(config, key)


def check_sweepable(key: str, where: str) -> None:
    """Refuse a key that all trials of a sweep share; `where` begins the message. Raises InputError."""
    if key not in ("seed", SUBSET) and not key.startswith(SWEEPABLE):
        groups = ", ".join(group.removesuffix(".") for group in SWEEPABLE)
        raise InputError(
            f"{where}{key} is not allowed: all trials of a sweep share one {key}; allowed: seed and keys of "
            f"{groups}, and {SUBSET}"
        )
    if key == "method.metric":
        raise InputError(f"{where}{key} is not allowed: trials are compared by one metric; set {key} instead")


def own_value(config: TrialConfig, key: str) -> Any:
    """A config's value of a key, as YAML has it. Raises InputError for an unknown key."""
    value = value_of(config, key)
    return value.value if isinstance(value, Enum) else value
