"""What a running sweep notes in its run's status."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune

from raytune_llm.sweep import status
from raytune_llm.sweep.camera import Camera
from raytune_llm.sweep.status import Best

SECONDS = 2.0
"""Shortest time between two counts, which look at all trials."""


class StatusNotes(tune.Callback):
    """Notes how far the sweep is, and its best report so far; those of earlier starts count."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.steering = camera, camera.steering
        self._noted_at = -SECONDS

    def setup(self, *args: Any, **info: Any) -> None:
        self._note()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        proposals = self.steering.queue.proposals
        value = result[proposals.objective.metric]
        cost = proposals.objective.cost(value)
        if math.isfinite(cost) and cost <= min(proposals.costs.values(), default=cost):
            status.update(best=Best(value=value, trial=trial.trial_id, step=result["step"]))
        if time.monotonic() - self._noted_at >= SECONDS:
            self._note()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._note()

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        queue, spending = self.steering.queue, self.steering.spending
        store, most = queue.proposals.store, queue.proposals.plan.most_steps()
        spent, num_trials = spending.amounts(), len(store.records) + queue.proposals.num_left()
        num_ended, num_running = len(store.endings), len(queue.live)
        steps_done = sum(most if id in store.endings else spending.steps.get(id, 0) for id in store.records)
        status.update(
            num_trials=num_trials,
            num_ended=num_ended,
            num_running=num_running,
            num_pending=max(0, num_trials - num_ended - num_running),
            steps_done=steps_done,
            steps_total=num_trials * most,
            seconds=3600 * spent["hours"],
            gpu_hours=spent["gpu_hours"],
            usd=None if spending.prices.usd_per_hour is None else spent["usd"],
            tokens=round(spent["tokens"]),
            eta_seconds=self.camera.seconds_left(),
        )
