"""What a run writes, read back while it is on its way and when it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """A line of a trial's metrics.jsonl."""

    step: int
    time: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a run so far."""

    id: str
    values: Mapping[str, Any]
    """Its point of the space, by dotted key; empty for a single run."""
    points: Sequence[Point]


class RunFiles:
    """The folder of one run; everything may be missing yet."""

    def __init__(self, home: str, name: str, run: str) -> None:
        raise NotImplementedError

    def trials(self) -> list[Trial]:
        """All trials with what they have reported, sorted by id. A half-written last line is left out."""
        raise NotImplementedError

    def outcome(self) -> Mapping[str, Any] | None:
        """result.json, which the command writes when the version is published: {"version", "promoted", "verdicts",
        "trial", "values", "step", "metric", "metrics", "trained_tokens"}; None before."""
        raise NotImplementedError

    def leaderboard(self) -> list[Mapping[str, str]]:
        """The rows of leaderboard.csv, the best first; none before the sweep has ended."""
        raise NotImplementedError

    def file(self, name: str) -> bytes | None:
        """data/report.html, evaluation-eval.md, leaderboard.csv …; None when it isn't there."""
        raise NotImplementedError
