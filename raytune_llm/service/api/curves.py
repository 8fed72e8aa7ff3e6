"""Curves of a run's trials, as a page draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from raytune_llm.service.records import Result, Status
from raytune_llm.service.run_files import Trial

TRAIN_LOSS = "train/loss"
MAIN_METRICS = ("eval/objective", "eval/accuracy", "eval/label_loss", "eval/loss")
"""What a run selects trials by, the first that its trials report: a trial answers only where its answers are what
selects."""
FALLING = re.compile(r"loss|perplexity|error|kl\b")
"""Metrics that are better when lower."""
SHOWN_POINTS = 8_000
"""Of all curves of a job together."""
FEWEST_POINTS, MOST_POINTS = 24, 400
"""Of one curve."""
SILENT_SECONDS = 180.0
"""A trial that has reported nothing for so long while others did is taken for ended."""
STEPS = re.compile(r"(?:^|\.)tuning\.steps=\[?([\d, ]+)\]?$")


def curves(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Each trial's values, and its points [step, value] by metric; long curves are thinned out, their ends kept."""
    most = max(FEWEST_POINTS, min(MOST_POINTS, SHOWN_POINTS // max(1, 2 * len(trials))))
    return [
        {
            "id": trial.id,
            "values": dict(trial.values),
            "points": {name: _thinned(list(_curve(trial, name)), most) for name in _names(trial)},
        }
        for trial in trials
    ]


def main_metric(trials: Sequence[Trial]) -> str | None:
    """What the trials are compared by; None before any was evaluated."""
    names = {name for trial in trials for name in _names(trial) if name.startswith("eval/")}
    return next((name for name in MAIN_METRICS if name in names), min(names, default=None))


def is_falling(metric: str) -> bool:
    """Whether lower is better."""
    return FALLING.search(metric) is not None


def falling(trials: Sequence[Trial]) -> list[str]:
    """The metrics reported that are better when lower."""
    return sorted({name for trial in trials for name in _names(trial) if is_falling(name)})


def best_of(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The best evaluation so far: metric, its value, trial and step."""
    metric = main_metric(trials)
    if metric is None:
        return None
    sign = 1 if is_falling(metric) else -1
    found = [(sign * value, step, trial.id) for trial in trials for step, value in _curve(trial, metric)]
    if not found:
        return None
    value, step, id = min(found)
    return {"metric": metric, "value": sign * value, "trial": id, "step": step, "is_falling": sign == 1}


def best_of_result(result: Result) -> dict[str, Any] | None:
    """What a finished job came to, in the same form."""
    metric = next((name for name in MAIN_METRICS if name in result.metrics), None)
    if metric is None:
        return None
    value = result.metrics[metric]
    return {"metric": metric, "value": value, "trial": None, "step": result.step, "is_falling": is_falling(metric)}


def progress(trials: Sequence[Trial], status: Status) -> float | None:
    """The part of the run's steps that is done, 0 to 1; None where that can't be known."""
    steps = [int(step) for text in status.command for found in STEPS.findall(text) for step in found.split(",")]
    begun = [trial for trial in trials if trial.points]
    if not steps or not begun:
        return None
    newest = max(trial.points[-1].time for trial in begun)
    last_begun = max(trial.points[0].time for trial in begun)
    planned = max(len(begun), 1 if status.estimate is None else status.estimate.trials)
    done = 0.0
    for trial in begun:
        last = trial.points[-1]
        ended = last.time < last_begun or last.time < newest - SILENT_SECONDS
        done += 1.0 if ended else min(1.0, last.step / max(steps))
    return done / planned


def _names(trial: Trial) -> list[str]:
    names = {name for point in trial.points for name in point.metrics}
    return sorted(name for name in names if name == TRAIN_LOSS or name.startswith("eval/"))


def _curve(trial: Trial, name: str) -> Iterator[tuple[int, float]]:
    """The finite values; of several of a step the last."""
    found = {point.step: float(point.metrics[name]) for point in trial.points if name in point.metrics}
    return ((step, value) for step, value in sorted(found.items()) if math.isfinite(value))


def _thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    if len(points) <= most:
        return points
    stride = (len(points) - 1) / (most - 1)
    return [points[round(i * stride)] for i in range(most)]
