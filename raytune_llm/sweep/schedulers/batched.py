"""Decisions on reports in batches: those made at nearly the same time reach a scheduler in the order that suits it.

Trials of packs reach an evaluation at nearly the same time, and a scheduler such as ASHA judges each report by those
received before it: left to chance, a sweep costs half or twice as much. So a report is held for a moment, until those
of the other trials that are nearly due have arrived too. Packs continue to train meanwhile.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raytune_llm.compat import resume_trial
from raytune_llm.sweep.schedulers.base import STEP, Order
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper

SHARE = 0.3
"""Longest time that a report is held, as a share of the time that its trial took for it. A trial that is then stopped
has trained that much longer in vain."""
MOST_SECONDS = 10.0
"""Upper bound of that time, however long a report takes."""


class BatchedScheduler(SchedulerWrapper):
    """Holds reports, answering with Ray Tune's NOOP, and decides on all held reports when no other is nearly due."""

    def __init__(
        self,
        scheduler: TrialScheduler,
        order: Order,
        *,
        lower_is_better: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(scheduler)
        self.order, self.sign, self.clock = order, 1 if lower_is_better else -1, clock
        self.held: dict[Trial, dict[str, Any]] = {}
        self.since: dict[str, float] = {}
        """When each running trial reported last, or was first seen to run."""
        self.first_at, self.first_took = 0.0, 0.0
        """When the first of the held reports arrived, and how long its trial had taken for it."""
        self.to_stop: deque[Trial] = deque()
        """Trials to be stopped, one every other time: Ray Tune keeps one process for the next trial, and a second only
        once that one has started."""
        self.stopped_one = False
        """Whether one was stopped the last time."""

    @property
    def supports_buffered_results(self) -> bool:
        """No: a trial whose report is held must not continue."""
        return False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        now = self.clock()
        if not self.held:
            self.first_at, self.first_took = now, now - self.since.get(trial.trial_id, now)
        self.since[trial.trial_id] = now
        self.held[trial] = result
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Called by Ray Tune each time before it starts trials and waits for an event."""
        now = self.clock()
        running = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.RUNNING]
        for trial in running:
            self.since.setdefault(trial.trial_id, now)
        if self.held and not self._waits(running, now):
            self._decide(tune_controller)
        elif self.to_stop and not self.stopped_one:
            tune_controller.stop_trial(self.to_stop.popleft())
            self.stopped_one = True
        else:
            self.stopped_one = False
        return super().choose_trial_to_run(tune_controller)

    def holds(self, trial: Trial) -> bool:
        return trial in self.held or trial in self.to_stop or super().holds(trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)
        super().on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._forget(trial)
        super().on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._forget(trial)
        super().on_trial_remove(tune_controller, trial)

    def _forget(self, trial: Trial) -> None:
        self.held.pop(trial, None)
        self.since.pop(trial.trial_id, None)
        if trial in self.to_stop:
            self.to_stop.remove(trial)

    def _waits(self, running: Sequence[Trial], now: float) -> bool:
        """Whether another trial is nearly due, if it takes as long as the first did."""
        patience = min(SHARE * self.first_took, MOST_SECONDS)
        due_after = self.first_took - patience
        nearly_due = (now - self.since[trial.trial_id] >= due_after for trial in running if trial not in self.held)
        return now < self.first_at + patience and any(nearly_due)

    def _decide(self, tune_controller: Any) -> None:
        """Pass all held reports on, lower steps first; resume the trials that may continue, queue the others."""
        by_step: dict[int, list[tuple[Trial, dict[str, Any]]]] = {}
        for trial, result in self.held.items():
            by_step.setdefault(result[STEP], []).append((trial, result))
        self.held = {}
        for _, found in sorted(by_step.items()):
            values = [self.sign * result[str(self.metric)] for _, result in found]
            for place in self.order([math.inf if math.isnan(value) else value for value in values]):
                trial, result = found[place]
                if self.scheduler.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
                    self.to_stop.append(trial)
                else:
                    resume_trial(tune_controller, trial)
