"""A running sweep at a moment, as plain values: taken by camera.py, shown by view.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytune_llm.training.curves import Scale
from raytune_llm.training.objective import Objective


@dataclass(frozen=True)
class Load:
    """How full a pack is."""

    used: int
    slots: int


class TrialState(Enum):
    """What a trial does, or how it ended."""

    running = "running"
    starting = "starting"
    """It has a place, and hasn't reported yet."""
    queued = "queued"
    complete = "complete"
    early_stopping = "early stopping"
    scheduler = "scheduler"
    stopped = "stopped"
    """By a command."""
    diverged = "diverged"
    failed = "failed"
    over = "over"
    """For another reason, its method's."""
    unfinished = "unfinished"
    """It is over because the sweep is, and can be resumed."""

    @property
    def is_live(self) -> bool:
        return self in (TrialState.running, TrialState.starting)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial."""

    id: str
    values: Mapping[str, Any]
    """Its point of the space, by dotted key."""
    state: TrialState
    step: int
    steps: int
    """In all, if nothing stops it."""
    last: float | None
    """The metric at its last report."""
    best: float | None
    train_loss: float | None
    curve: tuple[float, ...]
    """The metric at some of its reports, in order, the last among them."""


@dataclass(frozen=True, kw_only=True)
class BestReport:
    """The best report so far."""

    trial: str
    step: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A sweep at a moment."""

    title: str
    """Name and run."""
    control: str
    """The command that steers it; '' where that isn't known."""
    objective: Objective
    keys: tuple[str, ...]
    """Of the space."""
    rows: tuple[TrialRow, ...]
    """The best ones first, then those without a report."""
    counts: Mapping[TrialState, int]
    """Of all trials that there are."""
    num_trials: int
    """Those to come included."""
    steps_done: int
    steps_total: int
    best: BestReport | None
    scale: Scale
    """Of curves."""
    seconds: float
    """Since this start of the sweep's trials."""
    seconds_left: float | None
    """At most."""
    gpu_hours: float
    usd: float | None
    budget: tuple[tuple[str, float, float], ...]
    """Name, used and limit of what is bounded."""
    where: str
    """What trials run on."""
    loads: tuple[Load, ...]
    """Of each pack; nothing where that isn't known."""
    most_live: int | None
    """Trials at a time, if that is bounded; None when the trials are over."""
    steps_per_second: float
    tokens_per_second: float
    ending: str
    """Why no trial starts any more; '' while they do."""

    @property
    def num_ended(self) -> int:
        live = (TrialState.running, TrialState.starting, TrialState.queued, TrialState.unfinished)
        return sum(count for state, count in self.counts.items() if state not in live)

    @property
    def num_running(self) -> int:
        return sum(count for state, count in self.counts.items() if state.is_live)
