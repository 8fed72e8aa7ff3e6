"""A run's report as one HTML page that needs nothing else: styles, figures and scripts are inside, and its policy
forbids it to ask for anything from elsewhere.

Whatever data and models wrote is escaped by the template engine; scripts run only if their hash is in the policy, so
that markup in an answer can't become one. plotly.js makes functions of strings for parallel coordinates, hence
'unsafe-eval'.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raytune_llm.data.doctor.view import printable
from raytune_llm.evaluation.compare import number
from raytune_llm.evaluation.metrics import Confusion
from raytune_llm.jobs.report.data import Compared, Matrix, RunReport
from raytune_llm.jobs.report.differing import pieces, shortened
from raytune_llm.jobs.report.drawing import Figure
from raytune_llm.jobs.report.figures import figures_of, plotly_js
from raytune_llm.jobs.report.importance import why_not
from raytune_llm.sweep.tables import cell

PACKAGE = "raytune_llm.jobs.report"
SINGLE = ("curves", "coordinates", "importance", "costs", "timeline")
"""Figures that have a place of their own."""
SHOWN_ROWS = 12
"""Of the leaderboard, at first."""
NUMBER = re.compile(r"[-+−]?[\d,]*\.?\d+(?:e[-+]?\d+)?(?: ?(?:%|s|min|h|MB|GB))?|")
TITLES = {"sweep": "Sweep", "train": "Training", "evaluate": "Evaluation"}


@dataclass(frozen=True)
class Tile:
    """A number that the page begins with."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


def render(report: RunReport) -> str:
    """The page."""
    figures = figures_of(report)
    scripts = [plotly_js(), _file("page.js")]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            heading=TITLES.get(report.command, report.command),
            tiles=tiles(report),
            tone=_tone(report),
            figures=dict.fromkeys(SINGLE) | {figure.id: figure for figure in figures},
            intervals=[figure for figure in figures if figure.id.startswith("intervals")],
            board=leaderboard(report),
            no_importance=why_not(report.trials, report.knobs) if report.command == "sweep" else None,
            confusions=[confusions(one) for one in report.compared],
            shown_rows=SHOWN_ROWS,
            specs=Markup(_for_script(specs(figures))),
            scripts=[Markup(script) for script in scripts],
            policy=policy(scripts),
            css=Markup(theme() + _file("page.css")),
        )
    )


def policy(scripts: Sequence[str]) -> str:
    """What a browser lets the page do: run these scripts, and nothing from elsewhere."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def specs(figures: Sequence[Figure]) -> dict[str, Any]:
    """What the page's script draws, by figure."""
    return {figure.id: {"variants": list(figure.variants.values()), "hasLog": figure.has_log} for figure in figures}


def tiles(report: RunReport) -> list[Tile]:
    """The few numbers that matter."""
    found = []
    for compared in report.compared:
        comparison = compared.comparison
        systems, metric = comparison["systems"], compared.metric
        values = comparison["metrics"][metric]
        for system in systems:
            one = values[system]
            if one["value"] is not None:
                ends = "" if one["low"] is None else f"{number(one['low'])} to {number(one['high'])}"
                found.append(Tile(f"{metric}, {system}", number(one["value"]), ends))
    if report.command == "sweep":
        stopped = sum(trial.ended != "complete" for trial in report.trials)
        found.append(Tile("trials", f"{len(report.trials):,}", f"{stopped:,} ended early" if stopped else ""))
    if report.seconds:
        parts = ", ".join(f"{part} {duration(seconds)}" for part, seconds in report.seconds.items())
        found.append(Tile("time", duration(sum(report.seconds.values())), parts))
    return found


def leaderboard(report: RunReport) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; the metric, the knobs, the losses."""
    keys = list(dict.fromkeys(key for row in report.leaderboard for key in row.values))
    losses = [name for name in ("eval/loss", "train/loss") if name != report.metric]
    known = {name for row in report.leaderboard for name in row.metrics}
    losses = [name for name in losses if name in known]
    has_marks = any(row.marks for row in report.leaderboard)
    columns = ["", *(key.rsplit(".", 1)[-1] for key in keys), report.metric, "at step", *losses, "trial", "ended"]
    rows = []
    for place, row in enumerate(report.leaderboard, start=1):
        values = [cell(row.values.get(key, "")) for key in keys]
        numbers = [_decimal(row.metrics.get(name)) for name in (report.metric, *losses)]
        line = [str(place), *values, numbers[0], str(row.step), *numbers[1:], row.trial, row.ended.partition(":")[0]]
        rows.append([*line, *([", ".join(row.marks)] if has_marks else [])])
    return [*columns, *(["mark"] if has_marks else [])], rows


def confusions(compared: Compared) -> list[tuple[str, Matrix, list[list[float]], list[list[str]]]]:
    """By system: its counts, each one's share of its row, and precision, recall and F1 of each label."""
    found = []
    for system, matrix in compared.confusions.items():
        shares = [[count / max(1, sum(row)) for count in row] for row in matrix.counts]
        counted = Confusion(tuple(matrix.labels), tuple(map(tuple, matrix.counts)))
        scores = [
            [one.label, *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)), f"{one.support:,}"]
            for one in counted.classes()
        ]
        found.append((system, matrix, shares, scores))
    return found


def is_number(text: str) -> bool:
    """Whether a cell of a table belongs to the right, also with separators and a unit."""
    return NUMBER.fullmatch(text) is not None


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 3 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def theme() -> str:
    """The colours that all pages share, for light, dark, and whichever of them the reader chose."""
    light, dark = tokens()
    named = {"light": _variables(light), "dark": _variables(dark)}
    return (
        f":root {{ color-scheme: light; {named['light']} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {named['dark']} }} }}\n"
        f":root[data-theme=light] {{ color-scheme: light; {named['light']} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {named['dark']} }}\n"
    )


@cache
def tokens() -> tuple[dict[str, str], dict[str, str]]:
    """The variables of light and dark: those of the data check's page, and this page's own."""
    shared = resources.files("raytune_llm.data.doctor").joinpath("tokens.css").read_text(encoding="utf-8")
    own = _file("colours.css")
    blocks = [re.findall(r":root \{([^}]*)\}", text) for text in (shared, own)]
    light, dark = (
        {name: value for block in blocks for name, value in re.findall(r"--([\w-]+): ([^;]+);", block[place])}
        for place in (0, 1)
    )
    return light, dark


def _variables(values: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in values.items())


def _tone(report: RunReport) -> str:
    """Of the verdicts as a whole."""
    if report.state == "champion":
        return "sound"
    order = ("problem", "warning", "sound", "note")
    return min((one.tone for one in report.verdicts), key=order.index, default="note")


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"
    return f"{value:,.0f} {unit}".strip()


def _for_script(value: Any) -> str:
    """JSON inside of a script element, which no text in it can end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return resources.files(PACKAGE).joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"printable": printable, "cell": cell, "shortened": shortened, "span": _interval}
    made.globals |= {"pieces": pieces, "amount": _amount, "is_number": is_number}
    return made


def _interval(found: Mapping[str, float | None]) -> str:
    texts = ["–" if found[key] is None else number(float(found[key] or 0.0)) for key in ("value", "low", "high")]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
