"""Takes snapshots of a running sweep, in its driver, between two turns of its loop: another thread may draw them.

What is kept for them does not grow with the number of reports.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial

from raytune_llm.sweep.plan import STEPS
from raytune_llm.sweep.snapshot import BestReport, Snapshot, TrialRow, TrialState
from raytune_llm.sweep.steering import Steering
from raytune_llm.sweep.trial_store import TrialRecord
from raytune_llm.training.curves import scale_of, thinned

MOST_ROWS = 200
"""Trials of a snapshot: more than a terminal has lines."""
MOST_POINTS = 32
"""Of a trial's curve."""
RATE_REPORTS = 64
"""The speed is that of the last so many reports."""


@dataclass
class Camera:
    """Takes snapshots of a sweep; `started`: by time.monotonic()."""

    steering: Steering
    title: str
    control: str
    started: float = field(default_factory=time.monotonic)
    done_before: int = 0
    """Steps that were done when the trials of this start began."""
    failed: set[str] = field(default_factory=set)
    train_losses: dict[str, float] = field(default_factory=dict)
    """At each trial's last report."""
    _speed: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=RATE_REPORTS))
    """Seconds, steps and tokens at the last reports."""

    def begin(self) -> None:
        """Note when the trials begin, and what was done before."""
        self.started, self.done_before = time.monotonic(), self.done()
        self._speed.clear()
        self._speed.append((self.started, *self._trained()))

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note a trial's report."""
        if "train/loss" in result:
            self.train_losses[trial_id] = result["train/loss"]
        self._speed.append((time.monotonic(), *self._trained()))

    def _trained(self) -> tuple[int, float]:
        spending = self.steering.spending
        return sum(spending.steps.values()), spending.tokens

    @property
    def num_trials(self) -> int:
        """Those to come included."""
        return len(self._records()) + self.steering.queue.proposals.num_left()

    def _records(self) -> list[TrialRecord]:
        """Of the trials that are shown: the sweep's, or those that follow it."""
        proposals = self.steering.queue.proposals
        if proposals.points:
            return proposals.of_base()
        return [record for record in proposals.store.records.values() if not record.origin.is_apart]

    def done(self) -> int:
        """Steps that are no longer to do, those saved by early stopping included."""
        store, steps = self.steering.queue.proposals.store, self.steering.spending.steps
        most = self.steering.queue.proposals.plan.most_steps()
        ids = [record.id for record in self._records()]
        return sum(most if id in store.endings else steps.get(id, 0) for id in ids)

    def seconds_left(self) -> float | None:
        """At most, if steps take as long as so far; None before the first."""
        done = self.done()
        if done <= self.done_before:
            return None
        to_do = self.num_trials * self.steering.queue.proposals.plan.most_steps() - done
        return (time.monotonic() - self.started) * to_do / (done - self.done_before)

    def take(self, *, is_over: bool = False) -> Snapshot:
        """The sweep as it is; is_over: when its trials no longer run."""
        steering, now = self.steering, time.monotonic()
        proposals, spending = steering.queue.proposals, steering.spending
        objective, spent = proposals.objective, spending.amounts()
        states = {record.id: self.state_of(record.id, is_over=is_over) for record in proposals.of_base()}
        firsts = [self._value(reports[0][1]) for reports in proposals.reports.values()]
        bests = [self._value(cost) for cost in proposals.costs.values()]
        steps_per_second, tokens_per_second = self._rates()
        return Snapshot(
            title=self.title,
            control=self.control,
            objective=objective,
            keys=tuple(proposals.plan.keys),
            rows=tuple(self._row(id, states[id]) for id in self._chosen(states)),
            counts=Counter(states.values()),
            num_trials=self.num_trials,
            steps_done=self.done(),
            steps_total=self.num_trials * proposals.plan.most_steps(),
            best=self._best(),
            scale=scale_of(bests, firsts, objective),
            seconds=now - self.started,
            seconds_left=None if is_over else self.seconds_left(),
            gpu_hours=spent["gpu_hours"],
            usd=None if spending.prices.usd_per_hour is None else spent["usd"],
            budget=self._budget(spent),
            where=steering.runner.where,
            loads=() if is_over else tuple(steering.runner.loads()),
            most_live=None if is_over else steering.runner.max_concurrent,
            steps_per_second=steps_per_second,
            tokens_per_second=tokens_per_second,
            ending=steering.why if steering.drain is not None else "",
        )

    def state_of(self, id: str, *, is_over: bool) -> TrialState:
        """What a trial does now."""
        queue = self.steering.queue
        if (ending := queue.proposals.store.endings.get(id)) is not None:
            why = ending.why.partition(":")[0]
            return TrialState(why) if why in {state.value for state in TrialState} else TrialState.over
        if id in self.failed:
            return TrialState.failed
        if is_over:
            return TrialState.unfinished
        if id not in queue.live or queue.live[id].status in (Trial.PENDING, Trial.PAUSED):
            return TrialState.queued
        return TrialState.running if id in queue.proposals.reports else TrialState.starting

    def _chosen(self, states: Mapping[str, TrialState]) -> list[str]:
        """The trials to show: the best ones, and those that run; the best first."""
        costs = self.steering.queue.proposals.costs

        def order(id: str) -> tuple[bool, float, bool, str]:
            return id not in costs, costs.get(id, math.inf), not states[id].is_live, id

        live = [id for id, state in states.items() if state.is_live][:MOST_ROWS]
        best = heapq.nsmallest(MOST_ROWS, states, key=order)
        return sorted({*live, *best}, key=order)

    def _row(self, id: str, state: TrialState) -> TrialRow:
        proposals = self.steering.queue.proposals
        record: TrialRecord = proposals.store.records[id]
        reports = proposals.reports.get(id, ())
        return TrialRow(
            id=id,
            values=record.values,
            state=state,
            step=reports[-1][0] if reports else 0,
            steps=int(record.values.get(STEPS, proposals.plan.most_steps())),
            last=self._value(reports[-1][1]) if reports else None,
            best=self._value(proposals.costs[id]) if reports else None,
            train_loss=self.train_losses.get(id),
            curve=tuple(self._value(cost) for _, cost in thinned(reports, MOST_POINTS)),
        )

    def _value(self, cost: float) -> float:
        """Of the metric; NaN for what isn't finite."""
        if not math.isfinite(cost):
            return math.nan
        return cost if self.steering.queue.proposals.objective.lower_is_better else -cost

    def _best(self) -> BestReport | None:
        proposals = self.steering.queue.proposals
        id = min(proposals.costs, key=lambda id: proposals.costs[id], default=None)
        if id is None or not math.isfinite(proposals.costs[id]):
            return None
        step, cost = min(proposals.reports[id], key=lambda report: (report[1], report[0]))
        return BestReport(trial=id, step=step, value=self._value(cost))

    def _budget(self, spent: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
        budget = self.steering.spending.budget
        used = {**spent, "trials": float(len(self._records()))}
        limits = {name: getattr(budget, name) for name in used}
        return tuple((name, used[name], float(limit)) for name, limit in limits.items() if limit is not None)

    def _rates(self) -> tuple[float, float]:
        """Steps and tokens a second at the last reports."""
        (began, steps, tokens), (ended, more_steps, more_tokens) = self._speed[0], self._speed[-1]
        passed = max(1e-9, ended - began)
        return (more_steps - steps) / passed, (more_tokens - tokens) / passed
