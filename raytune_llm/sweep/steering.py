"""A running sweep is steered: commands are carried out, budgets kept, and it ends when nothing more can be learned.

Ray Tune asks its scheduler at each turn of its loop what to run, so all of this happens there, between two reports.
To drain a sweep is to start no further trial and to have those that run report once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raytune_llm.sweep.backends.base import Runner
from raytune_llm.sweep.commands import CommandDesk
from raytune_llm.sweep.queue import TrialQueue
from raytune_llm.sweep.schedulers.base import STEP
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper
from raytune_llm.sweep.spending import Spending

HASTEN_SECONDS = 1.0
"""Between two requests to report soon: a trial that was joining hasn't heard of the first."""
FIRST_REPORT_SECONDS = 20.0
"""That a trial may take to start after a budget is used up, where none has reported: without any there is no winner."""


class Drain(Enum):
    """Why a sweep is drained."""

    budget = "budget"
    unresolvable = "unresolvable"
    cancelled = "cancelled"
    paused = "paused"
    """It waits, and continues when it is resumed."""
    changed = "changed"
    """It continues at once, with another space."""


@dataclass
class Steering:
    """What is to become of the trials that run."""

    queue: TrialQueue
    runner: Runner
    desk: CommandDesk
    spending: Spending
    judge: Callable[[], str | None] = lambda: None
    """Why nothing more can be learned, or None."""
    clock: Callable[[], float] = time.monotonic
    drain: Drain | None = None
    why: str = ""
    """In words, for the terminal."""
    intervals: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Steps and seconds between the last two reports of each that runs; while none has two, of the last that had."""
    _reported_at: dict[str, float] = field(default_factory=dict)
    _hastened_at: float = -HASTEN_SECONDS
    _drained_at: float = 0.0

    def turn(self, controller: Any, holds: Callable[[Trial], bool]) -> None:
        """Once each time around Ray Tune's loop. `holds`: whether a trial's report is being held, so that nothing of it
        is under way."""
        now = self.clock()
        self.spending.count(now)
        if self.drain is None:
            self._decide(now)
        if self.drain is not None or self.desk.to_stop:
            self._end_trials(controller, holds, now)

    def _decide(self, now: float) -> None:
        """Whether the sweep is to be drained."""
        if (asked := self.desk.carry_out(now)) is not None:
            self.begin(Drain(asked), f"{asked} by a command")
            return
        live = {id: self.intervals[id] for id in self.queue.live if id in self.intervals}
        self.intervals = live or self.intervals
        coming = {id: steps for id, (steps, _) in live.items()}
        took = [seconds / (steps if self.runner.hastens else 1) for steps, seconds in self.intervals.values()]
        used_up = self.spending.exhausted(coming, report_seconds=max(took, default=0.0))
        if used_up is not None:
            self.begin(Drain.budget, f"{used_up} is used up")
        elif (why := self.judge()) is not None:
            self.begin(Drain.unresolvable, why)

    def begin(self, drain: Drain, why: str) -> None:
        """Drain the sweep."""
        self.drain, self.why, self.queue.is_closed, self._drained_at = drain, why, True, self.clock()
        print(f"\n{why}: running trials report once more", flush=True)

    def stops(self, trial_id: str) -> bool:
        """Whether a trial is to stop at its next report."""
        return self.drain is not None or trial_id in self.desk.to_stop

    def _needed(self, now: float) -> str | None:
        """The trial that is to report before a used-up budget ends it, since none has; None for most sweeps."""
        is_late = now - self._drained_at > FIRST_REPORT_SECONDS
        if self.drain is not Drain.budget or self.spending.steps or is_late:
            return None
        return next(iter(self.queue.live), None)

    def _end_trials(self, controller: Any, holds: Callable[[Trial], bool], now: float) -> None:
        running, needed = [], self._needed(now)
        for trial in list(controller.get_live_trials()):
            if not self.stops(trial.trial_id):
                continue
            if trial.status == Trial.PENDING and trial.trial_id == needed:
                continue
            if trial.status in (Trial.PENDING, Trial.PAUSED) or holds(trial):
                controller.stop_trial(trial)
            elif trial.status == Trial.RUNNING:
                running.append(trial.trial_id)
        if running and now - self._hastened_at >= HASTEN_SECONDS:
            self._hastened_at = now
            self.runner.hasten(running)

    def heard(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial has reported; a step that a resumed trial repeats is nothing new."""
        now, step, proposals = self.clock(), result[STEP], self.queue.proposals
        before = self.spending.steps.get(trial_id, 0)
        if step <= before:
            return
        proposals.hear(trial_id, step, result[proposals.objective.metric])
        self.spending.batch_sizes.setdefault(trial_id, proposals.batch_size(trial_id))
        if trial_id in self._reported_at:
            self.intervals[trial_id] = step - before, now - self._reported_at[trial_id]
        self._reported_at[trial_id] = now
        self.spending.steps[trial_id] = step


class SteeredScheduler(SchedulerWrapper):
    """Stops what is to stop, and leaves everything else to `scheduler`."""

    def __init__(self, scheduler: TrialScheduler, steering: Steering) -> None:
        super().__init__(scheduler)
        self.steering = steering

    @property
    def supports_buffered_results(self) -> bool:
        """No: a trial that is to stop does so at its next report."""
        return False

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self.steering.turn(tune_controller, self.holds)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        self.steering.heard(trial.trial_id, result)
        if self.steering.stops(trial.trial_id):
            return TrialScheduler.STOP
        return super().on_trial_result(tune_controller, trial, result)
