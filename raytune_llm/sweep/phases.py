"""The parts of a sweep that run one after another, and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.sweep.axes import Point
from raytune_llm.sweep.plan import Plan
from raytune_llm.sweep.steering import Drain
from raytune_llm.sweep.trial_store import Origin
from raytune_llm.training.config import Outcome, TrialConfig


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a sweep: its trials on one base."""

    base: str | None = None
    """The value of `model` that its trials have; None where all of the sweep's trials share a base."""
    config: TrialConfig
    examples: Any
    """ray.ObjectRef of Examples."""
    warm: Sequence[Point] = ()
    """Points of earlier sweeps' winners."""
    points: Sequence[Point] = ()
    """Where there are any, the phase has no other trials, and none is stopped by the scheduler."""
    origin: Origin = Origin.search
    """Of these points."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep came to."""

    outcomes: list[Outcome]
    """Of trials that have reported or failed."""
    followed: list[Outcome]
    """The same of those that followed them."""
    plan: Plan
    """With the axes that commands have added."""
    drained: Drain | None
    """Why it ended before its trials did."""
    why: str
    """The same in words."""
    spent: dict[str, float]
    """hours, gpu_hours, usd and tokens, over all of its restarts."""
    is_resumed: bool
    """Whether some of its trials were there before."""
    peak_bytes: int
    """The most memory that a process of its trials has held; 0 where that isn't known."""
