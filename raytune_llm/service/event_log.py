"""A job's events, derived from its status and its trials.

Each change of a status gives its events once, numbered by the change; each point of a trial gives at most one, named by
trial and step. What has been written already is read from the events themselves, so one that finds half of them stored
adds the other half and none twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raytune_llm.service.milestones import milestones
from raytune_llm.service.records import Event, Status, TuningRequest
from raytune_llm.service.run_files import Point, Trial

STEPS = "tuning.steps"
MESSAGE, METRICS = "message", "metrics"
COLUMNS = {
    "train_loss": "train/loss",
    "valid_loss": "eval/loss",
    "train_mean_token_accuracy": "train/token_accuracy",
    "valid_mean_token_accuracy": "eval/token_accuracy",
}
"""OpenAI's names of metrics, and ours."""
WORDS = {"train_loss": "training loss", "valid_loss": "validation loss"}
WHOLE = 100
"""Points of each sort, training alone or evaluation, that are all written; of the next as many every second, of those
after them every fourth …"""
MOST = 1000
"""Events of each sort, at most."""


class EventLog:
    """The events of one job, the oldest first."""

    def __init__(self, request: TuningRequest, events: Sequence[Event]) -> None:
        self._request = request
        self.events = list(events)
        self.num_changes = max((event.data.get("change", 0) for event in events), default=0)
        """Changes of the status whose events are written."""
        metrics = [event.data for event in events if event.kind == METRICS]
        self._known = {_key(data) for data in metrics}
        self._counts = {is_eval: sum(_is_eval(data) == is_eval for data in metrics) for is_eval in (False, True)}
        self._best = min((data["valid_loss"] for data in metrics if _is_eval(data)), default=math.inf)

    def add_changes(self, status: Status) -> bool:
        """Write what the changes of a status mean; whether there was anything new."""
        before = len(self.events)
        for number in range(self.num_changes + 1, len(status.changes) + 1):
            created = int(status.changes[number - 1][1])
            for level, message in milestones(self._request, status, number):
                self._append(created, level, MESSAGE, message, {"change": number})
            self.num_changes = number
        return len(self.events) > before

    def add_points(self, trials: Sequence[Trial], total_steps: int | None) -> bool:
        """Write new points of trials, thinned; whether there were any. total_steps: of a trial whose values don't have
        them."""
        before = len(self.events)
        found = [(point.time, trial.id, index, point, trial) for trial in trials for index, point in _points(trial)]
        for _, trial_id, index, point, trial in sorted(found, key=lambda one: one[:3]):
            total = trial.values.get(STEPS, total_steps)
            data = {"step": point.step, **_columns(point), "total_steps": total, "trial": trial_id}
            if _key(data) not in self._known and self._is_due(_is_eval(data), index):
                self._add_point(int(point.time), data, is_only=len(trials) == 1)
        return len(self.events) > before

    def _is_due(self, is_eval: bool, index: int) -> bool:
        """Whether a trial's point is written. Once it isn't it never is: every stride is a multiple of those before."""
        count = self._counts[is_eval]
        return count < MOST and index % (1 << count // WHOLE) == 0

    def _add_point(self, created: int, data: Mapping[str, Any], *, is_only: bool) -> None:
        is_eval, loss = _is_eval(data), data["valid_loss"]
        self._known.add(_key(data))
        self._counts[is_eval] += 1
        of = f"/{data['total_steps']}" if data["total_steps"] else ""
        where = "" if is_only else f" (trial {data['trial']})"
        values = [f"{word}={data[name]:.4g}" for name, word in WORDS.items() if data[name] is not None]
        text = f"Step {data['step']}{of}: {', '.join(values) or 'no finite loss'}{where}"
        self._append(created, "info", METRICS, text, data)
        if is_eval and loss < self._best:
            self._best = loss
            message = f"New best validation loss {loss:.4g} at step {data['step']}{where}; its checkpoint is kept"
            self._append(created, "info", MESSAGE, message, {"step": data["step"], "trial": data["trial"]})

    def _append(self, created: int, level: str, kind: str, message: str, data: Mapping[str, Any]) -> None:
        id = f"ftevent-{self._request.id.removeprefix('ftjob-')}-{len(self.events) + 1}"
        self.events.append(Event(id=id, created=created, level=level, kind=kind, message=message, data=data))


def _points(trial: Trial) -> Iterator[tuple[int, Point]]:
    """A trial's points, one a step with all its metrics: an evaluation with its index among those, other points with
    that of their step. Neither changes when points are added."""
    merged: dict[int, Point] = {}
    for point in trial.points:
        former = merged.get(point.step)
        metrics = point.metrics if former is None else {**former.metrics, **point.metrics}
        merged[point.step] = Point(step=point.step, time=point.time, metrics=metrics)
    num_evals = 0
    for step in sorted(merged):
        is_eval = _is_finite(merged[step].metrics.get(COLUMNS["valid_loss"]))
        yield (num_evals if is_eval else step - 1), merged[step]
        num_evals += is_eval


def _columns(point: Point) -> dict[str, float | None]:
    """A point's metrics by OpenAI's names; None for one that it hasn't, or that isn't finite."""
    found = {name: point.metrics.get(metric) for name, metric in COLUMNS.items()}
    return {name: value if _is_finite(value) else None for name, value in found.items()}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_eval(data: Mapping[str, Any]) -> bool:
    return data["valid_loss"] is not None


def _key(data: Mapping[str, Any]) -> tuple[Any, ...]:
    return data["trial"], data["step"], _is_eval(data)
