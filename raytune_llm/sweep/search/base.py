"""Which points of the space are tried: every one (grid), random ones, or those that Optuna's TPE proposes.

A search is asked for one point after another. It keeps nothing that a restart would lose: what it proposes follows from
the space, the seed, how many points it has proposed, and what was tried. What it remembers of that between two
proposals (Memory) only saves time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raytune_llm.sweep.axes import Point, identity
from raytune_llm.sweep.plan import Plan

__all__ = ["Memory", "Point", "Search", "Seen", "Tried"]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial so far, whoever asked for it."""

    values: Mapping[str, Any]
    cost: float | None
    """Of its best report, less is better; None while it has none."""
    is_over: bool


class Search(Protocol):
    """What conf/sweep/search chooses."""

    learns: bool
    """Whether its proposals depend on results, so that it shouldn't be asked in advance."""

    def check(self, plan: Plan) -> None:
        """Raise InputError for a space that it can't search."""
        ...

    def num_trials(self, plan: Plan) -> int:
        """Points that it proposes in all, at most: what was tried already, it doesn't propose."""
        ...

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        """The point after `index` proposals; None when there is none left. Its values are those of `plan.axes`.

        tried: all trials so far, those that it proposed and others, in the order in which they were made.
        """
        ...


@dataclass
class Seen:
    """Trials so far, as points of a plan."""

    plan: Plan
    identities: set[Hashable] = field(default_factory=set)
    num_points: int = 0
    """Different points of the space among them."""
    count: int = 0
    """Trials that were looked at."""
    last: Mapping[str, Any] | None = None
    """Values of the last of them."""
    state: Any = None
    """What a search keeps of its own."""

    def is_of(self, plan: Plan, tried: Sequence[Tried]) -> bool:
        """Whether these trials are the same and further ones."""
        same = self.count == 0 or (self.count <= len(tried) and tried[self.count - 1].values == self.last)
        return same and plan == self.plan

    def add(self, trial: Tried) -> None:
        point = self.plan.completed(trial.values)
        if (found := identity(point)) not in self.identities:
            self.identities.add(found)
            self.num_points += self.plan.contains(point)
        self.count, self.last = self.count + 1, trial.values


class Memory:
    """What was tried, brought up to date at each proposal, in time that doesn't grow with the trials."""

    def __init__(self) -> None:
        self._seen: Seen | None = None

    def of(self, plan: Plan, tried: Sequence[Tried]) -> Seen:
        """These trials; `state` is None where others were asked about before."""
        seen = self._seen
        if seen is None or not seen.is_of(plan, tried):
            seen = self._seen = Seen(plan)
        for place in range(seen.count, len(tried)):
            seen.add(tried[place])
        return seen
