"""Which trials are stopped before their last step, by Ray Tune's schedulers. Time is the trial's own optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytune_llm.input_error import require

STEP = "step"
"""The report's key that holds the optimizer step: monotonic, kept over restarts, unlike Tune's training_iteration."""

Order = Callable[[Sequence[float]], Sequence[int]]
"""In which order to tell values that were found together, the lower the better: a permutation of their indices."""


class Scheduler(Protocol):
    """What conf/sweep/scheduler chooses."""

    replays: bool
    """Whether it may be told of finished trials again after a restart; else it begins anew with the unfinished
    ones."""

    @property
    def order(self) -> Order | None:
        """In which order it is best told reports that come together; None where that says nothing to it."""
        ...

    def build(self, metric: str, mode: str, steps: int) -> Any:
        """A Ray Tune scheduler for trials of at most `steps` steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class ASHA:
    """Asynchronous successive halving (Li et al., 2018, arXiv 1810.05934)."""

    grace_steps: int
    """No trial is stopped before this step; ≥ 1."""
    reduction_factor: int
    """At each rung the best 1/reduction_factor go on, and the next rung is this many times later; ≥ 2."""

    replays = True

    def __post_init__(self) -> None:
        require(self.grace_steps >= 1, "sweep.scheduler.grace_steps", self.grace_steps, "≥ 1")
        require(self.reduction_factor >= 2, "sweep.scheduler.reduction_factor", self.reduction_factor, "≥ 2")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr=STEP,
            metric=metric,
            mode=mode,
            max_t=steps + 1,  # a trial at its last step ends by itself, as complete
            grace_period=min(self.grace_steps, steps),
            reduction_factor=self.reduction_factor,
        )

    def order(self, values: Sequence[float]) -> list[int]:
        """The best 1/reduction_factor from the last of them upward, then the others downward. It lets the first at a
        rung pass, then whoever is among the best so far: told in this order, just those pass."""
        ranked = sorted(range(len(values)), key=values.__getitem__)
        passing = -(-len(values) // self.reduction_factor)
        return ranked[:passing][::-1] + ranked[passing:]


@dataclass(frozen=True, kw_only=True)
class HyperBand:
    """Brackets of successive halving with different first rungs (Li et al., 2018, arXiv 1603.06560): trials of a
    bracket wait for each other at its rungs."""

    reduction_factor: int
    """At each rung the best 1/reduction_factor go on, and the next rung is this many times later; ≥ 2."""

    replays = False
    order = None

    def __post_init__(self) -> None:
        require(self.reduction_factor >= 2, "sweep.scheduler.reduction_factor", self.reduction_factor, "≥ 2")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import HyperBandScheduler

        return HyperBandScheduler(
            time_attr=STEP, metric=metric, mode=mode, max_t=steps, reduction_factor=self.reduction_factor
        )


@dataclass(frozen=True, kw_only=True)
class Median:
    """Stop a trial whose best is worse than the median of the others' running means (Golovin et al., 2017, Vizier)."""

    grace_steps: int
    """No trial is stopped before this step; ≥ 1."""
    min_trials: int
    """Trials that must have reported before any is stopped; ≥ 1."""

    replays = True
    order = None

    def __post_init__(self) -> None:
        require(self.grace_steps >= 1, "sweep.scheduler.grace_steps", self.grace_steps, "≥ 1")
        require(self.min_trials >= 1, "sweep.scheduler.min_trials", self.min_trials, "≥ 1")

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import MedianStoppingRule

        return MedianStoppingRule(
            time_attr=STEP,
            metric=metric,
            mode=mode,
            grace_period=self.grace_steps,
            min_samples_required=self.min_trials,
        )


@dataclass(frozen=True, kw_only=True)
class RunAll:
    """Every trial runs to its own end."""

    replays = True
    order = None

    def build(self, metric: str, mode: str, steps: int) -> Any:
        from ray.tune.schedulers import FIFOScheduler

        return FIFOScheduler()
