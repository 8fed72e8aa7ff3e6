"""The timeline: which trial ran when, in which slot or on which device, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.jobs.report import drawing
from raytune_llm.jobs.report.data import RunReport
from raytune_llm.jobs.report.drawing import BEST, LINE, TEXT, Figure, axis, described, layout, safe
from raytune_llm.jobs.report.lanes import Bar, bars_of

UNITS = ((3 * 3600.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""From so many seconds on, this many are one of that."""
THICKEST, THINNEST, HIGHEST = 26, 9, 620
"""Pixels of a lane, and of all lanes as long as they aren't too thin."""
MOST_NAMED = 48
"""Bars, from which on their trials' ids would not fit."""


def timeline(report: RunReport) -> Figure | None:
    """Which trial ran when and where."""
    bars = bars_of(report.trials)
    if not bars:
        return None
    first = min(bar.span.start for bar in bars)
    last = max(bar.span.end for bar in bars)
    size, unit = next((size, unit) for least, size, unit in UNITS if last - first >= least)
    lanes = sorted({bar.lane for bar in bars}, key=_natural)
    kinds: dict[tuple[str, str], list[Bar]] = {}
    for bar in bars:
        words, colour, _ = drawing.ending(bar.trial.ended) if bar.is_last else ("moved or interrupted", LINE, "")
        if drawing.is_winner(report, bar.trial):
            words, colour = "winner", BEST
        kinds.setdefault((words, colour), []).append(bar)
    data = [
        _bars(words, colour, found, first, size, unit, shown=len(bars) <= MOST_NAMED)
        for (words, colour), found in kinds.items()
    ]
    exact = all(bar.span.is_exact for bar in bars)
    note = (
        "A bar is a trial from its start to its last report; a lane is a slot of a base that trials share, or a device."
    )
    return Figure(
        id="timeline",
        title="Slots and devices over time",
        note=note + ("" if exact else " Starts that weren't noted are worked out from the seconds of training."),
        variants={
            "": {
                "data": data,
                "layout": layout(
                    barmode="overlay",
                    bargap=0.22,
                    uniformtext={"mode": "hide", "minsize": 9},
                    xaxis=axis(f"{unit} since the start", rangemode="tozero"),
                    yaxis=axis(
                        type="category", categoryorder="array", categoryarray=lanes[::-1], tickfont={"color": TEXT}
                    ),
                ),
            }
        },
        height=130 + round(len(lanes) * max(THINNEST, min(THICKEST, HIGHEST / len(lanes)))),
        columns=["trial", "lane", f"from, {unit}", f"to, {unit}", "host", "ended"],
        rows=[
            [
                bar.trial.id,
                bar.lane,
                f"{(bar.span.start - first) / size:.1f}",
                f"{(bar.span.end - first) / size:.1f}",
                bar.span.host,
                bar.trial.ended if bar.is_last else "",
            ]
            for bar in bars
        ],
    )


def _bars(
    name: str, colour: str, bars: Sequence[Bar], first: float, size: float, unit: str, *, shown: bool
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [bar.lane for bar in bars],
        "base": [round((bar.span.start - first) / size, 3) for bar in bars],
        "x": [round((bar.span.end - bar.span.start) / size, 3) for bar in bars],
        "text": [bar.trial.id if shown else "" for bar in bars],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "customdata": [described(bar.trial) for bar in bars],
        "marker": {"color": colour, "line": {"color": "var(--back)", "width": 1}},
        "hovertemplate": f"%{{customdata}}<br>%{{x:.1f}} {unit} from %{{base:.1f}}<extra>{safe(name)}</extra>",
    }


def _natural(lane: str) -> tuple[str, int]:
    group, _, place = lane.rpartition(" ")
    return group, int(place)
