"""Systems compared: every metric of each as a dot with its 95 % interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raytune_llm.evaluation.metrics import MAIN_ANSWER_METRICS
from raytune_llm.evaluation.terms import LOSS
from raytune_llm.jobs.report import drawing
from raytune_llm.jobs.report.data import Compared
from raytune_llm.jobs.report.drawing import BEST, MUTED, SOFT, TEXT, Figure, axis, layout, number, safe

MAIN = (LOSS, *(f"eval/{name}" for name in MAIN_ANSWER_METRICS))
MOST_AT_FIRST = 4
"""Strips that are shown unless more are asked for."""
SYSTEMS = {"base": MUTED, "champion": "var(--warning)", "initial": "var(--note)"}
"""Colours; the newest system has its own."""
ARROWS = {"lower": "↓", "higher": "↑"}
WORDS = {True: ("better", "var(--sound)"), False: ("worse", "var(--problem)")}


def intervals(place: int, compared: Compared) -> Figure | None:
    """Every metric of every system, a strip for each metric; the main ones at first where there are many."""
    comparison = compared.comparison
    systems, metrics = comparison["systems"], comparison["metrics"]
    names = [name for name in metrics if any(one["value"] is not None for one in metrics[name].values())]
    if not names:
        return None
    names.sort(key=lambda name: name != compared.metric)
    main = [name for name in names if name == compared.metric or name in MAIN]
    main = main if len(main) > 1 else names[:MOST_AT_FIRST]
    several = {"main metrics": main[:MOST_AT_FIRST], f"all {len(names)} metrics": names}
    shown = several if len(names) > MOST_AT_FIRST else {"": names}
    return Figure(
        id=f"intervals-{place}",
        title=f"{', '.join(systems[:-1])} and {systems[-1]} on the {compared.split} set",
        note=f"{comparison['num_examples']:,} examples; bars are 95 % intervals from {comparison['num_draws']:,} "
        "bootstrap draws. Differences are judged on the same examples, so that bars may overlap and differ "
        "significantly all the same.",
        variants={name: _strips(comparison, of_variant) for name, of_variant in shown.items()},
        choice="Show",
        height=_strip(systems) * len(next(iter(shown.values()))),
        columns=["metric", *systems],
        rows=[[name, *(_span(metrics[name][system]) for system in systems)] for name in names],
    )


def _strip(systems: Sequence[str]) -> int:
    """The height of a strip, pixels."""
    return 30 * len(systems) + 62


def _strips(comparison: Any, names: Sequence[str]) -> dict[str, Any]:
    systems, strip = comparison["systems"], _strip(comparison["systems"])
    height = strip * len(names)
    data: list[dict[str, Any]] = []
    shape = layout(showlegend=False, margin={"l": 12, "r": 18, "t": 0, "b": 0}, annotations=[], height=height)
    for row, name in enumerate(names):
        number_of = "" if row == 0 else str(row + 1)
        low, high = 1 - (row * strip + strip - 32) / height, 1 - (row * strip + 30) / height
        data += list(_dots(systems, comparison["metrics"][name], number_of))
        shape[f"xaxis{number_of}"] = axis(anchor=f"y{number_of}", domain=[0, 1], nticks=6, ticks="")
        shape[f"yaxis{number_of}"] = axis(
            domain=[low, high],
            anchor=f"x{number_of}",
            autorange="reversed",
            type="category",
            tickfont={"color": TEXT},
            categoryorder="array",
            categoryarray=list(map(safe, systems)),
        )
        shape["annotations"] += _titles(comparison, name, 1 - (row * strip + 8) / height)
    return {"data": data, "layout": shape}


def _dots(systems: Sequence[str], found: Any, axes: str) -> Iterator[dict[str, Any]]:
    for system in systems:
        one = found[system]
        if one["value"] is None:
            continue
        colour = SYSTEMS.get(system, BEST)
        error = {"type": "data", "symmetric": False, "thickness": 2.4, "width": 5, "color": colour}
        if one["low"] is not None and one["high"] is not None:
            error |= {"array": [one["high"] - one["value"]], "arrayminus": [one["value"] - one["low"]]}
        yield {
            "type": "scatter",
            "mode": "markers",
            "x": [drawing.rounded(one["value"])],
            "y": [safe(system)],
            "xaxis": f"x{axes}",
            "yaxis": f"y{axes}",
            "error_x": error,
            "marker": {"size": 11, "color": colour},
            "hovertemplate": f"{safe(system)} {safe(_span(one))}<extra></extra>",
        }


def _titles(comparison: Any, name: str, y: float) -> list[dict[str, Any]]:
    """A strip's metric at the left, and what the newest system's difference from the first one means at the right."""
    place = {"xref": "paper", "yref": "paper", "y": y, "showarrow": False, "yanchor": "middle"}
    arrow = ARROWS.get(comparison["directions"][name], "")
    title = {**place, "x": 0, "xanchor": "left", "text": f"<b>{safe(name)}</b> {arrow}", "font": {"size": 13}}
    systems = comparison["systems"]
    for found in comparison["differences"]:
        if (found["metric"], found["system"], found["reference"]) == (name, systems[-1], systems[0]):
            word, colour = _judged(found)
            value = f"{found['value']:+.3g} " if found["significant"] else ""
            font = {"color": colour, "size": 12}
            return [title, {**place, "x": 1, "xanchor": "right", "text": f"{value}{word}", "font": font}]
    return [title]


def _judged(difference: Any) -> tuple[str, str]:
    if not difference["significant"]:
        return "not significant", SOFT
    if difference["better"] not in ARROWS:
        return "differs", SOFT
    return WORDS[(difference["value"] > 0) == (difference["better"] == "higher")]


def _span(found: Any) -> str:
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"
