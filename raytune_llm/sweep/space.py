"""A sweep as the user writes it: the space of trials, how it is searched, how trials are trained and stopped early."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.axes import Axis, Point, flat, is_number
from raytune_llm.sweep.backends.base import Backend
from raytune_llm.sweep.budget import Budget
from raytune_llm.sweep.confirm import Confirm
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.schedulers.base import Scheduler
from raytune_llm.sweep.search.base import Search

DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: a space, how it is searched, what is stopped early."""

    space: dict[str, Any]
    """Nested keys of tuning, adapter, method and scaling, seed, data.subset, data.weights.NAME or model (names of
    conf/model, folders, hub ids), each with a list of choices or {min, max, distribution}; null takes a key out of the
    space. {choices: […], when: {KEY: […]}}, and a range with when, is a key that only trials with those values of
    another key have; the others have the job's own."""
    search: Search
    """Which points of the space are tried (conf/sweep/search)."""
    backend: Backend
    """How trials are trained (conf/sweep/backend)."""
    scheduler: Scheduler
    """Which trials are stopped before their last step (conf/sweep/scheduler)."""
    max_concurrent: int | None
    """Trials at the same time; null = as many as the cluster's CPUs or GPUs hold."""
    first: list[dict[str, Any]]
    """Points that are tried before all others, each with its values by dotted key: [{tuning.adapter_size: 8}]; what a
    point leaves out is the job's own value. Any key that could join the space will do, with any value it takes."""
    warm_start: bool
    """Try the winners of earlier sweeps of the same base and kind of task next, as far as the space has them."""
    budget: Budget
    confirm: Confirm
    stop_when_unresolvable: bool
    """End the sweep when what the remaining trials may gain is less than the eval set can tell apart."""
    extend: bool
    """Continue a run that has ended: with a larger space, which adds trials to those there are, or a larger budget."""
    more_labels: bool
    """Train the winner's recipe on an eighth, a quarter and a half of the records, too, and extrapolate what more
    records would bring."""

    def __post_init__(self) -> None:
        require(
            self.max_concurrent is None or self.max_concurrent >= 1,
            "sweep.max_concurrent",
            self.max_concurrent,
            "≥ 1 or null",
        )
        require(bool(self.axes()), "sweep.space", self.space, "a key with choices or a range; train runs one trial")

    def axes(self) -> dict[str, Axis]:
        """The axes by dotted key, in the order written."""
        return dict(axes_of(self.space))

    def keys(self) -> list[str]:
        """Keys in which trials may differ: axes, and those of the first points."""
        return list(dict.fromkeys([*self.axes(), *(key for point in self.first for key, _ in flat(point))]))


def first_points(sweep: Sweep, plan: Plan) -> list[Point]:
    """The points of sweep.first, each whole; those that mean the same once. `plan`: made with sweep.first."""
    assert bool(plan.first) == bool(sweep.first)
    return list(plan.first)


def axes_of(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Axis]]:
    """The axes of a space by dotted key: lists of choices, {choices, when}, and ranges, {min, max, distribution, when}.
    Raises InputError."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        if value is None:
            continue
        if not isinstance(value, Mapping):
            yield key, _choices(f"sweep.space.{key}", value, {})
        elif value.keys().isdisjoint(("min", "max", "choices")):
            require("when" not in value, f"sweep.space.{key}", dict(value), "choices, or min and max, next to when")
            yield from axes_of(value, f"{key}.")
        else:
            yield key, _axis(f"sweep.space.{key}", value)


def _axis(where: str, value: Mapping[str, Any]) -> Axis:
    names = {"choices", "when"} if "choices" in value else {"min", "max", "distribution", "when"}
    needed = names & {"choices", "min", "max"}
    allowed = "{choices, when}" if "choices" in value else "{min, max, distribution, when}"
    require(needed <= value.keys() <= names, where, dict(value), allowed)
    conditions = value.get("when", {})
    require(isinstance(conditions, Mapping), f"{where}.when", conditions, "{KEY: [VALUE, …]}, values of other axes")
    when = {key: tuple(values if isinstance(values, list) else [values]) for key, values in flat(conditions)}
    return _choices(where, value["choices"], when) if "choices" in value else _range(where, value, when)


def _choices(where: str, value: Any, when: Mapping[str, tuple[Any, ...]]) -> Axis:
    choices = value if isinstance(value, list) else [value]
    require(bool(choices), where, value, "a list with at least one value")
    plain = not any(isinstance(choice, list | Mapping) for choice in choices)
    require(plain, where, value, "numbers, texts, true, false and null as choices")
    return Axis(choices=tuple(dict.fromkeys(choices)), when=when)


def _range(where: str, value: Mapping[str, Any], when: Mapping[str, tuple[Any, ...]]) -> Axis:
    low, high, distribution = value["min"], value["max"], value.get("distribution", "uniform")
    require(distribution in DISTRIBUTIONS, f"{where}.distribution", distribution, ", ".join(DISTRIBUTIONS))
    require(is_number(low) and is_number(high) and low < high, where, dict(value), "numbers with min < max")
    require(distribution != "log_uniform" or low > 0, where, dict(value), "min > 0 for log_uniform")
    return Axis(low=low, high=high, distribution=distribution, when=when)
