"""What conf/sweep holds: a space of trials, and the choices of search, backend and scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raytune_llm.errors import require
from raytune_llm.sweep.backends.base import Backend
from raytune_llm.sweep.schedulers.base import Scheduler
from raytune_llm.sweep.search.base import Search
from raytune_llm.sweep.space import Axis, axes_of


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: a space, how it is searched, what is stopped early."""

    space: dict[str, Any]
    """Nested keys of the job, each with a list of choices or {min, max, distribution}; null takes a key out of the
    space."""
    search: Search
    """Which points of the space are tried (conf/sweep/search)."""
    backend: Backend
    """How trials are trained (conf/sweep/backend)."""
    scheduler: Scheduler
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
        return dict(axes_of(self.space))

    def candidates(self) -> Iterator[tuple[str, list[Any]]]:
        """Each key with the values to check before anything starts: all choices, or both ends of a range."""
        for key, axis in self.axes().items():
            yield key, list(axis.choices) or [axis.low, axis.high]
