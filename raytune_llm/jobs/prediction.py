"""A running job's prediction: made before its first trial starts, compared with what it took at its end, kept in its
version's card, from which the next prediction learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.jobs.cost import duration
from raytune_llm.jobs.forecasting import forecast_of, subject_of
from raytune_llm.jobs.setup import Started
from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.forecast import TUNE_SECONDS, Amounts, Forecast, amounts_of
from raytune_llm.sweep.plan import Plan
from raytune_llm.training.config import Outcome

COMPARING = "comparing and publishing"


@dataclass
class Prediction:
    """What a job is expected to take, and has taken."""

    started: Started[Any]
    plan: Plan
    examples: Any
    """ray.ObjectRef of what trials learn from."""
    forecast: Forecast | None = None
    trial_steps: int = 0
    memory_bytes: int = 0
    is_whole: bool = False
    """Whether all of the training was in this start of the job, and nothing but itself ended it."""

    def begin(self, runner: Runner | None = None, seconds_left: float = math.inf) -> float:
        """Predict, by a rehearsal where the runner makes one, which is short where a budget leaves few seconds; returns
        seconds to be kept for running trials' last reports, Ray Tune's end, and comparing and publishing."""
        subject = subject_of(self.started, self.plan, self.examples)
        rehearsal = None if runner is None else runner.rehearse(subject.script.within(seconds_left))
        self.forecast = forecast_of(subject, rehearsal)
        known = "measured" if rehearsal is not None else "guessed from sizes"
        based_on = self.forecast.based_on
        learned = f", corrected by {based_on} before" if based_on else ""
        print(f"expected: {duration(self.forecast.expected.seconds)} in all ({known}{learned})", flush=True)
        last_reports = 0.0 if rehearsal is None else rehearsal.evaluation_seconds(rehearsal.capacity)
        return self.forecast.reserve_seconds + last_reports + TUNE_SECONDS

    def trained(self, outcomes: Sequence[Outcome], *, memory_bytes: int, is_whole: bool) -> None:
        """Note what the training has taken."""
        self.trial_steps = sum(outcome.reports[-1].step for outcome in outcomes if outcome.reports)
        self.memory_bytes, self.is_whole = memory_bytes, is_whole

    def actual(self) -> Amounts:
        """What the job has taken so far, of which it is comparing and publishing now."""
        seconds = self.started.clock.seconds(running=COMPARING)
        return amounts_of(seconds, trial_steps=self.trial_steps, memory_bytes=self.memory_bytes)

    def record(self) -> dict[str, Any]:
        """What the card keeps; nothing of a job that was resumed or ended before its time."""
        if self.forecast is None or not self.is_whole:
            return {}
        return self.forecast.record(self.actual())

    def lines(self) -> list[tuple[str, str]]:
        """For the summary."""
        if self.forecast is None or not self.is_whole:
            return []
        return [("predicted", self.forecast.against(self.actual()))]
