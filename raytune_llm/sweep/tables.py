"""The leaderboard, for the terminal and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raytune_llm.evaluation.terms import DRIFT, LOSS

if TYPE_CHECKING:
    from raytune_llm.sweep.leaderboard import Row

PARETO = "pareto"
"""The column that marks the front of metric and drift."""


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a monospaced terminal, numbers to the right."""
    table = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    numeric = [all(is_number(row[i]) for row in rows if row[i]) and bool(rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in table
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def leaderboard_table(rows: Sequence[Row], metric: str, shown: int) -> str:
    """The best points of a sweep, with their losses and, where it is measured, drift and a mark for the front of both.
    A key that a point lacks, whose trial has the job's own value, is left empty."""
    if not rows:
        return "no trial came to a result"
    keys = keys_of(rows)
    losses = [name for name in (LOSS, "train/loss") if name != metric and name in rows[0].best.metrics]
    drift = [DRIFT, PARETO] if has_drift(rows) else []
    columns = ["", *map(short_key, keys), metric, "at step", *losses, *drift, "trial", "ended"]
    lines = [
        [
            str(place),
            *[cell(row.values.get(key, "")) for key in keys],
            f"{row.best.metrics[metric]:.4f}",
            str(row.best.step),
            *[f"{row.best.metrics[name]:.4f}" for name in losses],
            *([f"{row.best.metrics.get(DRIFT, math.nan):.4f}", mark(row)] if drift else []),
            row.trial,
            row.ended.split(":")[0],
        ]
        for place, row in enumerate(rows[:shown], 1)
    ]
    more = f"\n… and {len(rows) - shown} more in leaderboard.csv" if len(rows) > shown else ""
    return text_table(columns, lines) + more


def leaderboard_csv(rows: Sequence[Row]) -> str:
    """Every point with all metrics of its best report and, where drift is measured, whether it is on the front."""
    metrics = sorted({name for row in rows for name in row.best.metrics})
    keys = keys_of(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    pareto = [PARETO] if has_drift(rows) else []
    writer.writerow(["trial", *keys, "best_step", *metrics, *pareto, "ended"])
    for row in rows:
        values = [row.values.get(key, "") for key in keys]
        found = [row.best.metrics.get(name, "") for name in metrics]
        writer.writerow([row.trial, *values, row.best.step, *found, *([mark(row)] if pareto else []), row.ended])
    return out.getvalue()


def has_drift(rows: Sequence[Row]) -> bool:
    """Whether drift was measured."""
    return any(DRIFT in row.best.metrics for row in rows)


def mark(row: Row) -> str:
    """Of a point on the front of metric and drift."""
    return "●" if row.pareto else ""


def keys_of(rows: Sequence[Row]) -> list[str]:
    """Of all points: one that a user asked for may lack keys of the space, and has the job's own values there."""
    return list(dict.fromkeys(key for row in rows for key in row.values))


def short_key(key: str) -> str:
    """The last part of a dotted key."""
    return key.rsplit(".", 1)[-1]


def cell(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
