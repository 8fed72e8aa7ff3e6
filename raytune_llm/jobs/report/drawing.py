"""What all figures share: a figure as plain values that plotly.js draws, its axes, colours and numbers.

Colours are variables of the page's style (var(--bar)), which its script fills in, so that one figure serves light,
dark and paper.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.jobs.report.data import RunReport, TrialRun
from raytune_llm.sweep.tables import cell, short_key

BEST, MUTED, TEXT, SOFT, LINE = "var(--bar)", "var(--muted)", "var(--text)", "var(--soft)", "var(--line)"
DONE = "var(--done)"
ENDINGS = {
    "complete": ("complete", DONE, "circle"),
    "scheduler": ("stopped by the scheduler", MUTED, "x"),
    "early stopping": ("no longer improving", "var(--warning)", "square"),
    "unresolvable": ("nothing left to tell", MUTED, "diamond"),
    "budget": ("budget used up", MUTED, "diamond"),
    "stopped": ("stopped by a command", MUTED, "x"),
    "cancelled": ("cancelled", MUTED, "x"),
    "diverged": ("diverged", "var(--problem)", "x"),
    "failed": ("failed", "var(--problem)", "x"),
}
"""How trials end: in words, with the colour and the symbol of it."""
LOG_RATIO = 20.0
"""Of the largest to the smallest of positive values, from which a log scale shows more."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its text alternative."""

    id: str
    title: str
    note: str
    variants: Mapping[str, Mapping[str, Any]]
    """By name {"data", "layout"} as plotly.js takes them; the first one is shown, the others can be chosen."""
    choice: str = ""
    """What is chosen, where there is more than one variant."""
    height: int = 380
    min_width: int = 0
    """Pixels; a narrower page scrolls the figure within its box."""
    has_log: bool = False
    """Whether its vertical axis can be logarithmic."""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """The same as a table."""


def layout(**more: Any) -> dict[str, Any]:
    """A layout with the page's font and colours."""
    return {
        "font": {"family": "system-ui, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": TEXT},
        "paper_bgcolor": "var(--card)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 52, "r": 14, "t": 10, "b": 44},
        "hoverlabel": {"bgcolor": "var(--back)", "bordercolor": LINE, "font": {"color": TEXT}, "namelength": -1},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": SOFT}},
        "hovermode": "closest",
        **more,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis with quiet lines."""
    return {
        "title": {"text": safe(title), "font": {"color": SOFT}, "standoff": 8},
        "tickfont": {"color": SOFT},
        "gridcolor": LINE,
        "linecolor": LINE,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def value_axis(title: str, values: Sequence[float | None], **more: Any) -> dict[str, Any]:
    """An axis of measured values, logarithmic where they are positive and far apart."""
    return axis(title, type="log" if is_log(values) else "linear", **more)


def is_log(values: Sequence[float | None]) -> bool:
    found = [value for value in values if value is not None]
    return len(found) > 1 and min(found) > 0 and max(found) / min(found) >= LOG_RATIO


def can_be_log(values: Sequence[float | None]) -> bool:
    found = [value for value in values if value is not None]
    return bool(found) and min(found) > 0


def ending(ended: str) -> tuple[str, str, str]:
    """Words, colour and symbol of how a trial ended."""
    kind = ended.partition(":")[0]
    return ENDINGS.get(kind, (kind, MUTED, "x"))


def described(trial: TrialRun) -> str:
    """A trial in a line, for a label: its values and id."""
    values = ", ".join(f"{short_key(key)} {cell(value)}" for key, value in trial.values.items())
    return safe(f"{values} ({trial.id})" if values else trial.id)


def is_winner(report: RunReport, trial: TrialRun) -> bool:
    return trial.id == report.winner


def safe(text: str) -> str:
    """Text for plotly.js, which takes <b> and the like for markup."""
    return html.escape(text, quote=False)


def number(value: float | None) -> str:
    """Four digits that count, as leaderboards have them; '' for none."""
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def rounded(value: float | None) -> float | None:
    """A number of six digits, which is all that a pixel shows."""
    if value is None or value == 0:
        return value
    return round(value, 5 - math.floor(math.log10(abs(value))))


def on_scale(scale: str) -> Callable[[float], float]:
    """Where a number is along an axis of parallel coordinates, which has no log scale of its own."""
    return (lambda value: math.log10(value)) if scale == "log" else float


def ticks(values: Sequence[float], scale: str, most: int = 9) -> list[float]:
    """Numbers to write along an axis: all that there are if they are few, else round ones from end to end."""
    distinct = sorted(set(values))
    if len(distinct) <= most:
        return distinct
    low, high = distinct[0], distinct[-1]
    if scale == "log":
        found = [
            m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
        ]
        inside = [value for value in found if low <= value <= high]
        return (
            inside if 2 <= len(inside) <= most else _thin([v for v in found if low <= v <= high] or [low, high], most)
        )
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most - 1)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def ticks_to_ends(values: Sequence[float], scale: str) -> list[float]:
    """The same with both ends, without round ones that would be written over them."""
    at, low, high = on_scale(scale), min(values), max(values)
    room = (at(high) - at(low)) * 0.08
    found = ticks(values, scale)
    return [low, *(value for value in found if at(low) + room <= at(value) <= at(high) - room), high]


def _thin(values: Sequence[float], most: int) -> list[float]:
    return list(values[:: -(-len(values) // most)])
