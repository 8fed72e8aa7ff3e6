"""Asks now and then whether a running sweep can still learn anything (resolution.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from raytune_llm.evaluation.metric_file import read_metric
from raytune_llm.sweep.queue import TrialQueue
from raytune_llm.sweep.resolution import Curve, judge

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
        num_heard = sum(map(len, proposals.reports.values()))
        if now < self._next_at or num_heard == self._num_heard:
            return None
        self._next_at, self._num_heard = now + PERIOD_SECONDS, num_heard
        run_dir = proposals.store.run_dir
        found = judge(
            proposals.objective,
            {record.id: self._curve(record.id) for record in proposals.of_base()},
            num_pending=proposals.num_left(),
            records=lambda id: read_metric(f"{run_dir}/trials/{id}"),
            seed=proposals.seed,
        )
        return found.text if found.stop else None

    def _curve(self, id: str) -> Curve:
        proposals = self.queue.proposals
        steps, costs = zip(*proposals.reports.get(id, ()), strict=True) if id in proposals.reports else ((), ())
        is_over = id in proposals.store.endings
        return Curve(steps=steps, costs=costs, most_steps=proposals.plan.most_steps(), is_over=is_over)
