"""A diagnosis as one HTML page that needs nothing else: styles and pictures are inside, scripts there are none.

Everything that data say is escaped by the template engine. For phones, dark rooms and paper too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raytune_llm.data.doctor.results import Histogram, Results, SplitFacts
from raytune_llm.data.doctor.view import brief, printable, share
from raytune_llm.data.findings import Severity, many

TITLES = {Severity.problem: "Problems", Severity.warning: "Warnings", Severity.note: "Notes"}
MOST_ROWS = 40
"""Labels and sources that a table lists."""
WIDTH, HEIGHT, BASE = 320.0, 96.0, 20.0
"""Of a histogram, and of the strip below it for the numbers, in its own units."""


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram, drawn."""

    x: float
    y: float
    width: float
    height: float
    title: str
    label: str
    """Below the bar; '' where it would not fit."""
    count: str
    """Above the bar; '' likewise."""


def render(diagnosis: Results, title: str) -> str:
    """The page."""
    groups = [
        (severity.value, heading, [found for found in diagnosis.findings if found.severity is severity])
        for severity, heading in TITLES.items()
    ]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=printable(title),
            diagnosis=diagnosis,
            status="problem" if diagnosis.problems else "warning" if diagnosis.warnings else "sound",
            groups=[group for group in groups if group[2]],
            histograms=list(_histograms(diagnosis)),
            tables=[(name, rows) for name, split in diagnosis.splits.items() if (rows := label_rows(split))],
            sources={name: source_rows(split) for name, split in diagnosis.splits.items()},
            has_languages=any(split.languages for split in diagnosis.splits.values()),
            width=WIDTH,
            height=HEIGHT,
            base=BASE,
        )
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("raytune_llm.data.doctor", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["printable"] = printable
    made.filters["number"] = lambda number: f"{number:,}"
    made.filters["size"] = size
    return made


def _histograms(diagnosis: Results) -> Any:
    for name, split in diagnosis.splits.items():
        for what, lengths in (("prompt", split.prompt_tokens), ("completion", split.completion_tokens)):
            if lengths is not None and lengths.histogram.counts:
                yield f"{name}: {what}", lengths, bars(lengths.histogram)


def bars(histogram: Histogram) -> list[Bar]:
    """The bins as bars, side by side, as high as their counts."""
    most, step = max(histogram.counts), WIDTH / max(len(histogram.counts), 8)
    every = -(-len(histogram.counts) // 9)
    found = []
    for i, count in enumerate(histogram.counts):
        low, high = histogram.edges[i], histogram.edges[i + 1] - 1
        tall = max(HEIGHT * count / most, 1.5 if count else 0.0)
        label = f"{low:,}" if i % every == 0 else ""
        found.append(
            Bar(
                x=round(i * step + 1, 1),
                y=round(HEIGHT - tall, 1),
                width=round(step - 2, 1),
                height=round(tall, 1),
                title=f"{low:,} to {high:,} tokens: {count:,}",
                label=label,
                count=f"{count:,}" if count and every == 1 else "",
            )
        )
    return found


def label_rows(split: SplitFacts) -> list[tuple[str, int, float]]:
    """Label, count, share in percent; the last row is of the rest where there are many."""
    total = sum((split.labels or {}).values()) or 1
    return [(name, count, 100 * count / total) for name, count in _rows(split.labels or {})]


def source_rows(split: SplitFacts) -> list[tuple[str, int, str]]:
    """Source, with its weight, count, share."""
    total = sum(split.sources.values())
    return [(name, count, share(count, total)) for name, count in _rows(split.sources, split.times)]


def _rows(counts: dict[str, int], after: Callable[[str], str] = lambda name: "") -> list[tuple[str, int]]:
    """`after`: what follows a name."""
    ordered = sorted(counts.items(), key=lambda row: -row[1])
    shown = [(f"{brief(name)}{after(name)}", count) for name, count in ordered[:MOST_ROWS]]
    if rest := ordered[MOST_ROWS:]:
        shown.append((many(len(rest), "other"), sum(count for _, count in rest)))
    return shown


def size(num_bytes: int) -> str:
    """A number of bytes, for people."""
    for unit, bytes_of in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if num_bytes >= bytes_of:
            return f"{num_bytes / bytes_of:.1f} {unit}"
    return f"{num_bytes} bytes"
