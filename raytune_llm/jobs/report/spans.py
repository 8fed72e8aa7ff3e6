"""A trial of a report: all that it reported, and when and where it was trained, from the files of its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from raytune_llm.jobs.report.data import Point, Span, TrialRun, finite
from raytune_llm.stores.storage import open_storage
from raytune_llm.sweep.trial_store import TRIAL
from raytune_llm.training.attempts import Attempt, read_attempts
from raytune_llm.training.config import Outcome
from raytune_llm.training.objective import Objective
from raytune_llm.training.tracking.jsonl import METRICS

SECONDS = "time/seconds"


def trial_run(run_dir: str, outcome: Outcome, objective: Objective) -> TrialRun:
    """A trial of a run."""
    folder = f"{run_dir}/trials/{outcome.trial.id}"
    times = report_times(folder, objective.metric)
    points = [
        Point(
            step=report.step,
            time=times.get(report.step),
            metrics={name: finite(value) for name, value in report.metrics.items()},
        )
        for report in outcome.reports
    ]
    best = outcome.best
    value = None if best is None else finite(best.metrics[objective.metric])
    return TrialRun(
        id=outcome.trial.id,
        values=dict(outcome.trial.values),
        origin=_origin(folder),
        ended=outcome.ended,
        seconds=outcome.seconds,
        gpu_hours=outcome.reports[-1].metrics.get("cost/gpu_hours", 0.0) if outcome.reports else 0.0,
        best_step=None if best is None or value is None else best.step,
        best=value,
        points=points,
        spans=spans_of(read_attempts(folder), points, outcome.seconds),
    )


def report_times(folder: str, metric: str) -> dict[int, float]:
    """When each report was logged, by its step; of a line that a killed process left unfinished, nothing."""
    storage = open_storage(folder)
    found: dict[int, float] = {}
    for line in storage.read(METRICS).splitlines() if storage.exists(METRICS) else ():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if metric in content:
            found[int(content["step"])] = float(content["time"])
    return found


def spans_of(attempts: Sequence[Attempt], points: Sequence[Point], seconds: float) -> list[Span]:
    """The times of training: each attempt up to its last report. Without attempts one that ends with the last report
    and is as long as the training was."""
    times = [point.time for point in points if point.time is not None]
    if not attempts:
        if not times:
            return []
        first = min(times[0], times[-1] - seconds)
        return [Span(start=first, end=times[-1], host="", device="", process=None, is_exact=False)]
    ends = [*(attempt.started for attempt in attempts[1:]), math.inf]
    found = []
    for attempt, until in zip(attempts, ends, strict=True):
        own = [time for time in times if attempt.started <= time < until]
        found.append(
            Span(
                start=attempt.started,
                end=max(own, default=attempt.started),
                host=attempt.host,
                device=attempt.device,
                process=attempt.process,
                is_exact=True,
            )
        )
    return found


def _origin(folder: str) -> str:
    storage = open_storage(folder)
    return str(json.loads(storage.read(TRIAL))["origin"]) if storage.exists(TRIAL) else ""
