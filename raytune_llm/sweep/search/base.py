"""Which points of the space are tried: every one (grid), random ones, or those that Optuna's TPE proposes.

A search is asked for one point after another. It keeps nothing that a restart would lose: what it proposes follows from
the space, the seed, how many points it has proposed, and what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.sweep.plan import Plan

Point = dict[str, Any]
"""Values by dotted key."""


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
        """Points that it proposes in all."""
        ...

    def propose(self, plan: Plan, index: int, tried: Sequence[Tried], seed: int) -> Point | None:
        """The point after `index` proposals; None when there is none left. Its values are those of `plan.axes`."""
        ...
