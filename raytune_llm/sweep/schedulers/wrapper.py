"""A scheduler around one of Ray Tune's: the base of those that change a part of its behaviour."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler


class SchedulerWrapper(TrialScheduler):
    """Delegates everything to `scheduler`."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        super().__init__()
        self.scheduler = scheduler

    @property
    def metric(self) -> str | None:
        metric: str | None = self.scheduler.metric
        return metric

    @property
    def supports_buffered_results(self) -> bool:
        return bool(self.scheduler.supports_buffered_results)

    def holds(self, trial: Trial) -> bool:
        """Whether a report of this trial is being held, so that nothing of it is under way."""
        return isinstance(self.scheduler, SchedulerWrapper) and self.scheduler.holds(trial)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return bool(self.scheduler.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.scheduler.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return str(self.scheduler.on_trial_result(tune_controller, trial, result))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.scheduler.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self.scheduler.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self.scheduler.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        chosen: Trial | None = self.scheduler.choose_trial_to_run(tune_controller)
        return chosen

    def debug_string(self) -> str:
        return str(self.scheduler.debug_string())
