"""The axes of a sweep's space, their conditions, and the points that they make, counted and found without a list."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from raytune_llm.errors import InputError, require

Point = dict[str, Any]
"""Values by dotted key. A key whose condition isn't met is absent."""
ABSENT = object()
"""In place of a value, where there is none; null is a value."""


@dataclass(frozen=True)
class Axis:
    """One key's values: choices, or a range."""

    choices: tuple[Any, ...] = ()
    low: float | int = 0
    high: float | int = 0
    distribution: str = "uniform"
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values of other axes that a point must have, each one of those listed, for it to have this key, too."""

    @property
    def candidates(self) -> list[Any]:
        """The values to check before anything starts: all choices, or both ends of the range."""
        return list(self.choices) or [self.low, self.high]

    @property
    def values(self) -> Sequence[Any] | None:
        """All values; None where they are real numbers of a range."""
        if self.choices:
            return self.choices
        return range(int(self.low), int(self.high) + 1) if self.distribution == "int_uniform" else None

    def holds(self, value: Any) -> bool:
        """Whether a value is one of this axis."""
        values = self.values
        if values is not None:
            return value in values
        return is_number(value) and self.low <= value <= self.high

    def is_met(self, point: Mapping[str, Any]) -> bool:
        """Whether a point, whose other values are there already, has this key."""
        return all(point.get(key, ABSENT) in allowed for key, allowed in self.when.items())

    def nearest(self, value: Any) -> Any:
        """Its value that is nearest to another, by ratio where all numbers are positive; ABSENT where there is none."""
        if self.holds(value):
            return value
        if not is_number(value):
            return ABSENT
        if not self.choices:
            value = min(max(value, self.low), self.high)
            return round(value) if self.distribution == "int_uniform" else value
        return next(iter(outward(tuple(filter(is_number, self.choices)), value)), ABSENT)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key, of mappings within mappings, whose keys may have dots, too."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def identity(point: Mapping[str, Any]) -> Hashable:
    """What equal points have in common, whatever the order of their keys."""
    return frozenset((key, repr(value) if isinstance(value, list) else value) for key, value in point.items())


def outward(choices: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """Numbers by their distance from `own`, by ratio where all are positive; anything else in the order given."""
    numbers = (*choices, own)
    if not all(map(is_number, numbers)):
        return choices
    if all(number > 0 for number in numbers):
        return tuple(sorted(choices, key=lambda choice: abs(math.log(choice / own))))
    return tuple(sorted(choices, key=lambda choice: abs(choice - own)))


def parents_first(axes: Mapping[str, Axis]) -> list[str]:
    """The keys in their order, but each after those that its condition names. Raises InputError for a circle."""
    left, found = list(axes), list[str]()
    while left:
        key = next((key for key in left if not axes[key].when.keys() & set(left)), None)
        if key is None:
            raise InputError(f"sweep.space: the conditions (when) of {', '.join(left)} wait for each other")
        left.remove(key)
        found.append(key)
    return found


def resolved(axes: Mapping[str, Axis], own: Mapping[str, Any]) -> dict[str, Axis]:
    """The axes without conditions that every point meets, because the key isn't an axis and the job's own value is one
    of those listed. own: the job's values of all keys that conditions name. Raises InputError for a condition that no
    point meets, that names a range, or that is part of a circle."""
    found = {}
    for key, axis in axes.items():
        for parent, allowed in axis.when.items():
            where, other = f"sweep.space.{key}.when.{parent}", axes.get(parent)
            is_range = other is not None and other.values is None
            require(not is_range, where, list(allowed), f"conditions on choices; {parent} has a range")
            is_met = any(other.holds(value) if other else value == own[parent] for value in allowed)
            known = f"a value of sweep.space.{parent}" if other else f"{own[parent]}, which every trial has"
            require(is_met, where, list(allowed), f"{known}; it is never met")
        left = {parent: allowed for parent, allowed in axis.when.items() if parent in axes}
        found[key] = replace(axis, when=left)
    parents_first(found)
    return found


@dataclass(frozen=True)
class Points:
    """All points of axes, in order: the first axis changes fastest, but an axis that a condition names after those that
    depend on it."""

    axes: Mapping[str, Axis]

    @cached_property
    def order(self) -> list[str]:
        """The slowest first, parents before their children."""
        return parents_first({key: self.axes[key] for key in reversed(list(self.axes))})

    @cached_property
    def count(self) -> int | None:
        """None where an axis has real numbers."""
        return None if any(axis.values is None for axis in self.axes.values()) else self._count(0, {})

    def __getitem__(self, index: int) -> Point:
        """The point at a place from 0 to count - 1."""
        point: Point = {}
        for place, key in enumerate(self.order):
            if not self.axes[key].is_met(point):
                continue
            for value in self.axes[key].values or ():
                point[key] = value
                below = self._count(place + 1, point)
                if index < below:
                    break
                index -= below
        return {key: point[key] for key in self.axes if key in point}

    def __iter__(self) -> Iterator[Point]:
        return map(self.__getitem__, range(self.count or 0))

    @cached_property
    def _named(self) -> list[tuple[str, ...]]:
        """For each place of the order, the keys that conditions from there on name."""
        conditions = [self.axes[key].when for key in self.order]
        return [tuple({key for when in conditions[place:] for key in when}) for place in range(len(conditions) + 1)]

    @cached_property
    def _counts(self) -> dict[Any, int]:
        return {}

    def _count(self, place: int, point: Mapping[str, Any]) -> int:
        """Points of the axes from a place of the order on, after the values of those before."""
        if place == len(self.order):
            return 1
        state = (place, *(point.get(key, ABSENT) for key in self._named[place]))
        if state not in self._counts:
            key = self.order[place]
            values: Sequence[Any] = self.axes[key].values or ()
            if not self.axes[key].is_met(point):
                found = self._count(place + 1, point)
            elif key in self._named[place + 1]:
                found = sum(self._count(place + 1, {**point, key: value}) for value in values)
            else:
                found = len(values) * self._count(place + 1, point)
            self._counts[state] = found
        return self._counts[state]
