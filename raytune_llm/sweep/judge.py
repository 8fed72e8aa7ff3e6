"""Asks now and then whether a running sweep can still learn anything (resolution.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from raytune_llm.evaluation.metric_file import read_metric
from raytune_llm.sweep.plan import STEPS
from raytune_llm.sweep.queue import TrialQueue
from raytune_llm.sweep.resolution import Curve, judge
from raytune_llm.sweep.trial_store import TrialRecord

PERIOD_SECONDS = 5.0


@dataclass
class Judge:
    """Called at each turn of a sweep's loop."""

    queue: TrialQueue
    clock: Callable[[], float] = time.monotonic
    _next_at: float = -math.inf
    _num_heard: int = 0

    def __call__(self) -> str | None:
        """Why nothing more can be learned, or None; also where no trial has reported since it was last asked."""
        proposals, now = self.queue.proposals, self.clock()
        if now < self._next_at:
            return None
        num_heard = sum(map(len, proposals.reports.values()))
        if num_heard == self._num_heard:
            return None
        self._next_at, self._num_heard = now + PERIOD_SECONDS, num_heard
        run_dir, waiting = proposals.store.run_dir, {record.id for record in self.queue.waiting}
        found = judge(
            proposals.objective,
            {record.id: self._curve(record, waiting) for record in proposals.of_base()},
            num_pending=proposals.num_left(),
            records=lambda id: read_metric(f"{run_dir}/trials/{id}"),
            seed=proposals.seed,
        )
        return found.text if found.stop else None

    def _curve(self, record: TrialRecord, waiting: Container[str]) -> Curve:
        """A trial that failed is over, too."""
        proposals = self.queue.proposals
        reports = proposals.reports.get(record.id, ())
        return Curve(
            steps=[step for step, _ in reports],
            costs=[cost for _, cost in reports],
            most_steps=int(record.values.get(STEPS, proposals.plan.most_steps())),
            is_over=record.id not in self.queue.live and record.id not in waiting,
        )
