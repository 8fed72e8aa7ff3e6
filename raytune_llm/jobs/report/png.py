"""The main figure as a picture, report.png, for where no page can be shown: learning curves, or of an evaluation each
system's metric. Drawn by matplotlib, which needs no browser; this is the only file that imports it."""

from __future__ import annotations

import io
from typing import Any

from raytune_llm.errors import InputError
from raytune_llm.jobs.report.data import RunReport, TrialRun
from raytune_llm.jobs.report.drawing import ENDINGS, ending, is_log, is_winner
from raytune_llm.jobs.report.page import tokens

INCHES = (9.6, 5.0)
DPI = 125
MARKERS = {"circle": "o", "x": "x", "square": "s", "diamond": "D"}


def render_png(report: RunReport) -> bytes:
    """The picture. Raises InputError where the package is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError("report.png needs the package matplotlib; install it with: pip install matplotlib") from error
    colours = tokens()[0]
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained", facecolor=colours["back"])
    axes = figure.add_subplot()
    trials = [trial for trial in report.trials if trial.points]
    if trials:
        _curves(axes, report, trials, colours)
    else:
        _intervals(axes, report, colours)
    axes.set_title(f"{report.version} · {report.name}/{report.run}", loc="left", fontsize=12, fontweight="bold")
    _style(axes, colours)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _curves(axes: Any, report: RunReport, trials: list[TrialRun], colours: dict[str, str]) -> None:
    values = [point.metrics.get(report.metric) for trial in trials for point in trial.points]
    seen: set[str] = set()
    for trial in sorted(trials, key=lambda trial: is_winner(report, trial)):
        points = [(point.step, point.metrics.get(report.metric)) for point in trial.points]
        known = [(step, value) for step, value in points if value is not None]
        if not known:
            continue
        steps, heights = zip(*known, strict=True)
        won = is_winner(report, trial)
        look = {"color": colours["bar"], "lw": 2.6, "zorder": 3} if won else {"color": colours["muted"], "lw": 1.1}
        name = "winner" if won and len(trials) > 1 else "" if won else "other trials"
        axes.plot(steps, heights, alpha=1.0 if won else 0.6, label=_once(name, seen), **look)
        if won and trial.best is not None:
            axes.plot([trial.best_step], [trial.best], "*", ms=15, mec=colours["text"], color=colours["bar"], zorder=4)
        elif trial.ended != "complete":
            words, colour, symbol = ending(trial.ended)
            colour = colours.get(colour.removeprefix("var(--").rstrip(")"), colours["muted"])
            axes.plot(steps[-1:], heights[-1:], MARKERS[symbol], ms=5, color=colour, label=_once(words, seen))
    axes.set_xlabel("step")
    axes.set_ylabel(report.metric)
    if is_log(values):
        axes.set_yscale("log")
    if seen:
        axes.legend(frameon=False, ncols=min(4, len(seen)), labelcolor=colours["soft"])


def _once(name: str, seen: set[str]) -> str | None:
    """A label for the legend, the first time."""
    if not name or name in seen:
        return None
    seen.add(name)
    return name


def _intervals(axes: Any, report: RunReport, colours: dict[str, str]) -> None:
    [compared, *_] = report.compared
    systems = compared.comparison["systems"]
    for place, system in enumerate(systems):
        one = compared.comparison["metrics"][compared.metric][system]
        if one["value"] is None:
            continue
        colour = colours["bar"] if system == systems[-1] else colours["muted"]
        if one["low"] is not None and one["high"] is not None:
            axes.plot([one["low"], one["high"]], [place, place], color=colour, lw=3, solid_capstyle="butt")
        axes.plot([one["value"]], [place], "o", ms=10, color=colour)
    axes.set_yticks(range(len(systems)), systems)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlabel(f"{compared.metric}, {compared.split} set, with 95 % intervals")


def _style(axes: Any, colours: dict[str, str]) -> None:
    axes.set_facecolor(colours["back"])
    axes.grid(color=colours["line"], lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["soft"], length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(colours["soft"])
    axes.title.set_color(colours["text"])


assert {symbol for _, _, symbol in ENDINGS.values()} <= MARKERS.keys()
