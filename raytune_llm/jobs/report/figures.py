"""The figures of a report, as values that plotly.js draws (drawing.py), and plotly.js itself, from the package plotly.

The main figure's picture without a browser is png.py's.
"""

from __future__ import annotations

from importlib import resources

from raytune_llm.errors import InputError
from raytune_llm.jobs.report import importance
from raytune_llm.jobs.report.coordinates import coordinates
from raytune_llm.jobs.report.costs import costs
from raytune_llm.jobs.report.curves import curves
from raytune_llm.jobs.report.data import RunReport
from raytune_llm.jobs.report.drawing import BEST, TEXT, Figure, axis, layout, safe
from raytune_llm.jobs.report.intervals import intervals
from raytune_llm.jobs.report.timeline import timeline


def plotly_js() -> str:
    """The drawing library, for the page. Raises InputError where the package is missing."""
    try:
        return resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError as error:
        raise InputError("report.html needs the package plotly; install it with: pip install plotly") from error


def figures_of(report: RunReport) -> list[Figure]:
    """Those that the report has data for, in the order of the page."""
    measured = [trial for trial in report.trials if trial.best is not None]
    found: list[Figure | None] = [intervals(place, one) for place, one in enumerate(report.compared)]
    found.append(curves(report))
    if len(measured) > 1 and report.knobs:
        found += [coordinates(report, measured), importances(report)]
    if len(measured) > 1:
        found.append(costs(report, measured))
    if report.command == "sweep":
        found.append(timeline(report))
    return [figure for figure in found if figure is not None]


def importances(report: RunReport) -> Figure | None:
    """How much each knob decided."""
    found = importance.importances(report.trials, report.knobs, lower_is_better=bool(report.lower_is_better))
    if not found:
        return None
    names = [safe(one.knob.label) for one in found]
    shares = [100 * one.share for one in found]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [100 * max(0.0, one.high - one.share) for one in found],
        "arrayminus": [100 * max(0.0, one.share - one.low) for one in found],
        "color": TEXT,
        "thickness": 1.4,
    }
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": names,
        "error_x": error,
        "marker": {"color": BEST},
        "hovertemplate": "%{y}: %{x:.0f} %<extra></extra>",
    }
    shape = layout(
        xaxis=axis("share, %", range=[0, 104]), yaxis=axis(autorange="reversed", tickfont={"color": TEXT}), bargap=0.45
    )
    count = sum(trial.best is not None for trial in report.trials)
    return Figure(
        id="importance",
        title="Which knobs mattered",
        note=f"PED-ANOVA on {count} trials: how differently the best of them are spread along a knob than all "
        "are. The thin lines are the middle 90 % of what random halves of the trials say: where they are long, the "
        "trials were too few to tell.",
        variants={"": {"data": [trace], "layout": shape}},
        height=110 + 46 * len(found),
        columns=["knob", "share", "from", "to"],
        rows=[[one.knob.label, *(f"{100 * part:.0f} %" for part in (one.share, one.low, one.high))] for one in found],
    )
