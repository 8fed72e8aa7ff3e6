"""A trial as a pack takes it in. Light, for the processes that only send it."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.jobs.schema import TrainJob
from raytune_llm.training.config import Trial


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What is to be trained, and where what it leaves is kept."""

    job: TrainJob
    """With the trial's values applied."""
    trial: Trial
    directory: str
    """Path or URI of its checkpoints and metrics."""
    milestones: tuple[int, ...]
    """Steps at which it is evaluated besides the regular ones."""
