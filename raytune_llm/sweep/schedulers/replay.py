"""A scheduler of Ray Tune that knows, after a restart, what the trials had reported before.

Ray Tune stores no scheduler: the rungs of a sweep that resumes would be empty and its medians unknown. The reports
themselves are in the trials' checkpoints, so they are replayed to the scheduler: those of trials that have ended before
the first trial is added, those of the others as each is added again. A report that a resumed trial repeats is not
passed on twice; a stop decided on it remains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from raytune_llm.sweep.schedulers.base import STEP
from raytune_llm.sweep.schedulers.wrapper import SchedulerWrapper
from raytune_llm.training import checkpoints
from raytune_llm.training.history import read_reports
from raytune_llm.training.objective import Report


class ReplayingScheduler(SchedulerWrapper):
    """Each report of each trial reaches `scheduler` once, over any number of restarts."""

    def __init__(
        self, scheduler: TrialScheduler, reported: Callable[[str], Sequence[Report]], *, finished_too: bool
    ) -> None:
        """`reported` gives what the trial of an id had reported before it was added, in order of its steps. Without
        `finished_too` the scheduler sees unfinished trials only."""
        super().__init__(scheduler)
        self.reported, self.finished_too = reported, finished_too
        self.last: dict[str, tuple[int, bool]] = {}
        """The last step passed on of each trial, and whether that stopped it."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        finished = trial.status == Trial.TERMINATED
        if finished and not self.finished_too:
            return
        self.scheduler.on_trial_add(tune_controller, trial)
        if not self.finished_too:
            return
        result: dict[str, Any] = {}
        for report in self.reported(trial.trial_id):
            result = {**report.metrics, STEP: report.step}
            self.on_trial_result(tune_controller, trial, result)
        if result and finished:
            self.scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        step, was_stopped = self.last.get(trial.trial_id, (0, False))
        if result[STEP] > step:
            decision = str(self.scheduler.on_trial_result(tune_controller, trial, result))
            self.last[trial.trial_id] = result[STEP], decision == TrialScheduler.STOP
            return decision
        repeats_last = result[STEP] == step
        return TrialScheduler.STOP if repeats_last and was_stopped else TrialScheduler.CONTINUE


def checkpointed(directory: str, trial_id: str) -> Sequence[Report]:
    """The reports in the newest checkpoint of a trial below a folder or URI; none before its first."""
    stored = checkpoints.latest(f"{directory}/{trial_id}")
    return () if stored is None else read_reports(stored)
