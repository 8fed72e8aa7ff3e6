"""Reports that are made together are told to a scheduler together, in the order that suits it.

Trials of packs reach an evaluation at nearly the same time, and a scheduler such as ASHA judges each report by those
it has been told before: left to chance, a sweep costs half or twice as much. So a report is held back for a moment,
until those of the other trials that are nearly there have come too. Packs train on meanwhile.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raytune_llm.sweep.schedulers.base import STEP, Order
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper

SHARE = 0.3
"""Longest time that a report is held back, as a share of the time that its trial took for it. A trial that is stopped
has trained on for nothing by as much."""
MOST_SECONDS = 10.0
"""That time at most, however long a report takes."""


class BatchedScheduler(SchedulerWrapper):
    """Holds reports back, with Ray Tune's NOOP, and decides on all that are held when no other is about to come.

    Ray Tune asks for decisions one at a time and has no public way to let a trial that got a NOOP go on; its
    controller's own is called here, on the version that the project pins.
    """

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
        self.began, self.took = 0.0, 0.0
        """When the first of the held reports came, and how long its trial had taken for it."""
        self.ending: deque[Trial] = deque()
        """Trials to be stopped, one every other time: Ray Tune keeps one process for the trial that comes next, and a
        second only once that one has begun."""
        self.ended_one = False
        """Whether one was stopped the last time."""

    @property
    def supports_buffered_results(self) -> bool:
        """No: a trial whose report is held must not go on."""
        return False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        now = self.clock()
        if not self.held:
            self.began, self.took = now, now - self.since.get(trial.trial_id, now)
        self.since[trial.trial_id] = now
        self.held[trial] = result
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Ray Tune asks this each time before it starts trials and waits for an event."""
        now = self.clock()
        running = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.RUNNING]
        for trial in running:
            self.since.setdefault(trial.trial_id, now)
        if self.held and not self._waits(running, now):
            self._decide(tune_controller)
        elif self.ending and not self.ended_one:
            tune_controller.stop_trial(self.ending.popleft())
            self.ended_one = True
        else:
            self.ended_one = False
        return super().choose_trial_to_run(tune_controller)

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
        if trial in self.ending:
            self.ending.remove(trial)

    def _waits(self, running: Sequence[Trial], now: float) -> bool:
        """Whether another trial is about to report, if it takes as long as the first did."""
        patience = min(SHARE * self.took, MOST_SECONDS)
        about_to = (
            now - self.since[trial.trial_id] >= self.took - patience for trial in running if trial not in self.held
        )
        return now < self.began + patience and any(about_to)

    def _decide(self, tune_controller: Any) -> None:
        """Tell them all, lower steps first, let those go on that may, and line up the others to be stopped."""
        by_step: dict[int, list[tuple[Trial, dict[str, Any]]]] = {}
        for trial, result in self.held.items():
            by_step.setdefault(result[STEP], []).append((trial, result))
        self.held = {}
        for _, found in sorted(by_step.items()):
            values = [self.sign * result[str(self.metric)] for _, result in found]
            for place in self.order([math.inf if math.isnan(value) else value for value in values]):
                trial, result = found[place]
                if self.scheduler.on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
                    self.ending.append(trial)
                else:
                    tune_controller._tune_controller._schedule_trial_train(trial)
