"""Learning curves: every metric of every trial over its steps, the winner in colour, how the others ended marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.evaluation.terms import LOSS
from raytune_llm.jobs.report import drawing
from raytune_llm.jobs.report.data import Point, RunReport, TrialRun
from raytune_llm.jobs.report.drawing import BEST, MUTED, TEXT, Figure, axis, described, layout, number, safe
from raytune_llm.jobs.report.front import thinned

MOST_METRICS = 12
NOT_SHOWN = ("time/", "cost/")
"""Metrics that only grow."""


def curves(report: RunReport) -> Figure | None:
    """A variant for each metric; None where no trial has reported."""
    trials = [trial for trial in report.trials if trial.points]
    if not trials:
        return None
    names = metrics_of(report.metric, trials)
    variants = {name: _curves(report, trials, name) for name in names}
    values = [value for trial in trials for value in _values(trial.points, report.metric)]
    return Figure(
        id="curves",
        title="Learning curves",
        note="" if len(trials) == 1 else "A line is a trial; marks show where and why those that ended early did.",
        variants=variants,
        choice="Metric",
        height=420,
        has_log=drawing.can_be_log(values),
        columns=["trial", "values", f"first {report.metric}", "best", "at step", "last", "steps", "ended"],
        rows=[_row(trial, report.metric) for trial in trials],
    )


def metrics_of(metric: str, trials: Sequence[TrialRun]) -> list[str]:
    """The run's own first, then the losses, then others, at most MOST_METRICS."""
    found = dict.fromkeys(name for trial in trials for point in trial.points for name in point.metrics)
    others = sorted(name for name in found if not name.startswith(NOT_SHOWN))
    return list(dict.fromkeys([metric, *(name for name in (LOSS, "train/loss") if name in found), *others]))[
        :MOST_METRICS
    ]


def _values(points: Sequence[Point], name: str) -> list[float | None]:
    return [point.metrics.get(name) for point in points]


def _curves(report: RunReport, trials: Sequence[TrialRun], name: str) -> dict[str, Any]:
    others = [trial for trial in trials if not drawing.is_winner(report, trial)]
    data = [_line(trial, name, len(trials), is_first=place == 0) for place, trial in enumerate(others)]
    data += _ends(trials, name)
    won = next((trial for trial in trials if drawing.is_winner(report, trial)), None)
    if won is not None:
        data += _winner(won, name, len(trials))
    every = [value for trial in trials for value in _values(trial.points, name)]
    last = max(trial.points[-1].step for trial in trials)
    shape = layout(xaxis=axis("step", range=[0, 1.03 * last]), yaxis=drawing.value_axis(name, every))
    return {"data": data, "layout": shape}


def _line(trial: TrialRun, name: str, num_curves: int, *, is_first: bool) -> dict[str, Any]:
    return {
        **_path(trial, name, num_curves),
        "name": "other trials",
        "legendgroup": "others",
        "showlegend": is_first,
        "line": {"color": MUTED, "width": 1.3},
        "opacity": 0.55 if num_curves <= 40 else 0.35,
    }


def _path(trial: TrialRun, name: str, num_curves: int) -> dict[str, Any]:
    best = next((place for place, point in enumerate(trial.points) if point.step == trial.best_step), 0)
    points = [trial.points[place] for place in thinned(len(trial.points), num_curves, keep=[best])]
    is_lone = len(points) == 1
    return {
        "type": "scatter",
        "mode": "markers" if is_lone else "lines",
        "x": [point.step for point in points],
        "y": [drawing.rounded(value) for value in _values(points, name)],
        "hovertemplate": f"{described(trial)}<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
    }


def _ends(trials: Sequence[TrialRun], name: str) -> list[dict[str, Any]]:
    """A mark at the last report of every trial that didn't train to its end."""
    found: dict[tuple[str, str, str], list[TrialRun]] = {}
    for trial in trials:
        if trial.ended != "complete":
            found.setdefault(drawing.ending(trial.ended), []).append(trial)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": words,
            "x": [trial.points[-1].step for trial in ended],
            "y": [drawing.rounded(trial.points[-1].metrics.get(name)) for trial in ended],
            "text": [described(trial) for trial in ended],
            "marker": {"color": colour, "symbol": symbol, "size": 7},
            "hovertemplate": f"%{{text}}<br>{words} at step %{{x}}<extra></extra>",
        }
        for (words, colour, symbol), ended in found.items()
    ]


def _winner(trial: TrialRun, name: str, num_curves: int) -> list[dict[str, Any]]:
    label = "winner" if num_curves > 1 else name
    line = {**_path(trial, name, num_curves), "name": safe(label), "line": {"color": BEST, "width": 3}}
    best = next((point for point in trial.points if point.step == trial.best_step), None)
    if best is None:
        return [line]
    star = {
        "type": "scatter",
        "mode": "markers",
        "name": "published step" if num_curves == 1 else "its published step",
        "x": [best.step],
        "y": [drawing.rounded(best.metrics.get(name))],
        "marker": {"color": BEST, "symbol": "star", "size": 15, "line": {"color": TEXT, "width": 1}},
        "hovertemplate": f"{described(trial)}<br>best at step %{{x}}: %{{y:.4g}}<extra></extra>",
    }
    return [line, star]


def _row(trial: TrialRun, metric: str) -> list[str]:
    first, last = trial.points[0], trial.points[-1]
    return [
        trial.id,
        ", ".join(f"{key} {value}" for key, value in trial.values.items()),
        number(first.metrics.get(metric)),
        number(trial.best),
        "" if trial.best_step is None else str(trial.best_step),
        number(last.metrics.get(metric)),
        str(last.step),
        trial.ended,
    ]
