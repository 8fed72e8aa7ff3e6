"""Result against cost: what each trial had taken at its best report, with the front that none of them beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.jobs.report import drawing
from raytune_llm.jobs.report.data import RunReport, TrialRun
from raytune_llm.jobs.report.drawing import BEST, MUTED, TEXT, Figure, axis, described, layout, number, safe
from raytune_llm.jobs.report.front import pareto


def costs(report: RunReport, trials: Sequence[TrialRun]) -> Figure:
    """What each trial had cost at its best report against what it reached, with the front that none of them beats."""
    on_gpus = any(trial.gpu_hours for trial in trials)
    key, unit = ("cost/gpu_hours", "GPU-hours") if on_gpus else ("time/seconds", "seconds of training")
    points = [next(point for point in trial.points if point.step == trial.best_step) for trial in trials]
    spent = [float(point.metrics.get(key) or 0.0) for point in points]
    results = [float(trial.best or 0.0) for trial in trials]
    front = pareto(spent, results, lower_is_better=bool(report.lower_is_better))
    names = [described(trial) for trial in trials]
    hover = f"%{{text}}<br>%{{x:.3g}} {unit}<br>{safe(report.metric)} %{{y:.4g}}<extra></extra>"
    won = [place for place, trial in enumerate(trials) if drawing.is_winner(report, trial)]

    def marks(places: Sequence[int], name: str, **more: Any) -> dict[str, Any]:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [drawing.rounded(spent[place]) for place in places],
            "y": [drawing.rounded(results[place]) for place in places],
            "text": [names[place] for place in places],
            "hovertemplate": hover,
            **more,
        }

    data = [
        marks(range(len(trials)), "trials", marker={"color": MUTED, "size": 9, "opacity": 0.8}),
        marks(
            front,
            "none is cheaper and better",
            mode="lines+markers",
            line={"color": BEST, "width": 1.6, "shape": "hv"},
            marker={"color": BEST, "size": 9},
        ),
        marks(won, "winner", marker={"color": BEST, "size": 15, "symbol": "star", "line": {"color": TEXT, "width": 1}}),
    ]
    on_front = set(front)
    return Figure(
        id="costs",
        title="Result against cost",
        note=f"A dot is a trial: how many {unit} it had taken at its best report, and what it had reached.",
        variants={
            "": {
                "data": data,
                "layout": layout(
                    xaxis=axis(unit, rangemode="tozero"), yaxis=drawing.value_axis(report.metric, results)
                ),
            }
        },
        has_log=drawing.can_be_log(results),
        columns=["trial", unit, report.metric, "front"],
        rows=[
            [trial.id, f"{spent[place]:.4g}", number(results[place]), "yes" if place in on_front else ""]
            for place, trial in enumerate(trials)
        ],
    )
