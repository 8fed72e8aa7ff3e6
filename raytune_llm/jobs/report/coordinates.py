"""Parallel coordinates: a line a trial, through its values to its result, the best ones in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.jobs.report import drawing
from raytune_llm.jobs.report.data import Knob, RunReport, TrialRun
from raytune_llm.jobs.report.drawing import BEST, DONE, LINE, SOFT, TEXT, Figure, layout, number, safe
from raytune_llm.sweep.tables import cell

WIDTH = (-0.004, -0.002, 0.0, 0.002, 0.004)
"""Of an axis, where the winner's lines are next to its value."""
ABSENT = "–"
"""In place of a value that a trial doesn't have."""


def coordinates(report: RunReport, trials: Sequence[TrialRun]) -> Figure:
    """Parallel coordinates: a line a trial, through its values to its result, the best ones in colour."""
    ordered = sorted(trials, key=_cost(report), reverse=True)  # the best is drawn last, on top
    ordered += [trial for trial in ordered if drawing.is_winner(report, trial)] * (len(WIDTH) - 1)
    dimensions = [_dimension(knob, ordered) for knob in report.knobs]
    results = [trial.best for trial in ordered]
    dimensions.append(_result(report, results))
    dimensions = [_thickened(dimension) for dimension in dimensions]
    places = [1 - place / max(1, len(ordered) - len(WIDTH)) for place in range(len(ordered))]
    trace = {
        "type": "parcoords",
        "line": {"color": places, "colorscale": [[0, BEST], [0.5, DONE], [1, "var(--faint)"]], "cmin": 0, "cmax": 1},
        "dimensions": dimensions,
        "labelfont": {"color": TEXT, "size": 12},
        "tickfont": {"color": SOFT, "size": 11},
        "rangefont": {"color": "rgba(0,0,0,0)", "size": 1},
        "unselected": {"line": {"color": LINE, "opacity": 0.25}},
    }
    sides = [20 + round(3.6 * len(label)) for label in (report.knobs[0].label, report.metric)]
    shape = layout(margin={"l": max(56, sides[0]), "r": max(56, sides[1]), "t": 46, "b": 18})
    columns = ["trial", *(knob.label for knob in report.knobs), report.metric]
    rows = [
        [trial.id, *(cell(trial.values.get(knob.key, ABSENT)) for knob in report.knobs), number(trial.best)]
        for trial in dict(zip((trial.id for trial in reversed(ordered)), reversed(ordered), strict=True)).values()
    ]
    return Figure(
        id="coordinates",
        title="Which values led where",
        note="A line is a trial, the better its result, the stronger its colour; better results are further up. "
        "Drag along an axis to keep only the trials within, tap it to keep all again.",
        variants={"": {"data": [trace], "layout": shape}},
        height=400,
        min_width=sum(max(110, 24 + 7 * len(dimension["label"])) for dimension in dimensions),
        columns=columns,
        rows=rows,
    )


def _thickened(dimension: dict[str, Any]) -> dict[str, Any]:
    """With the winner's lines, the last ones, next to each other: plotly.js draws all lines equally thin."""
    low, high = sorted(dimension["range"])
    values = dimension["values"]
    apart = [(high - low) * place for place in WIDTH]
    own = [value + place for value, place in zip(values[-len(WIDTH) :], apart, strict=True)]
    return {**dimension, "values": [drawing.rounded(value) for value in (*values[: -len(WIDTH)], *own)]}


def _cost(report: RunReport) -> Any:
    sign = 1 if report.lower_is_better else -1
    return lambda trial: sign * trial.best


def _dimension(knob: Knob, trials: Sequence[TrialRun]) -> dict[str, Any]:
    """An axis of parallel coordinates: values that a trial lacks are below the others."""
    given = [trial.values[knob.key] for trial in trials if knob.key in trial.values]
    if knob.scale == "categories":
        texts = sorted({cell(value) for value in given})
        places = {text: float(place) for place, text in enumerate(texts)}
        at = [places[cell(trial.values[knob.key])] if knob.key in trial.values else None for trial in trials]
        ticks = list(places.items())
    else:
        numbers = drawing.on_scale(knob.scale)
        at = [numbers(trial.values[knob.key]) if knob.key in trial.values else None for trial in trials]
        ticks = [(cell(value), numbers(value)) for value in drawing.ticks_to_ends(given, knob.scale)]
    known = [value for value in at if value is not None]
    low, high = min(known), max(known)
    room = (high - low or 1.0) * 0.06
    if len(known) < len(at):
        below = low - 3 * room
        at = [below if value is None else value for value in at]
        ticks.append((ABSENT, below))
        low = below
    return {
        "label": safe(knob.label),
        "values": at,
        "tickvals": [place for _, place in ticks],
        "ticktext": [safe(text) for text, _ in ticks],
        "range": [low - room, high + room],
    }


def _result(report: RunReport, results: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in results if value is not None]
    scale = "log" if drawing.is_log(known) else "linear"
    numbers = drawing.on_scale(scale)
    at = [numbers(value) for value in known]
    room = (max(at) - min(at) or 1.0) * 0.06
    ends = [min(at) - room, max(at) + room]
    chosen = drawing.ticks_to_ends(known, scale)
    return {
        "label": safe(report.metric),
        "values": at,
        "tickvals": [numbers(value) for value in chosen],
        "ticktext": [f"{value:.3g}" for value in chosen],
        "range": ends[::-1] if report.lower_is_better else ends,
    }
