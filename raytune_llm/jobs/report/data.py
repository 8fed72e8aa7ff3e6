"""What a run's report holds, as plain values: report.json is this, report.html and report.png are drawn from it.

Numbers are finite or None. Whoever has more to tell of a run appends a Section.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SCHEMA = 1
"""Of report.json; a reader refuses a larger one."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A verdict, and how it is to be taken."""

    text: str
    tone: str
    """sound, warning, problem or note."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page that has words and a table."""

    title: str
    paragraphs: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    verdict: Sentence | None = None
    """What of it stands at the top of the page."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A key in which trials differ."""

    key: str
    label: str
    scale: str
    """linear, log or categories."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A report of a trial."""

    step: int
    time: float | None
    """Unix time; None where it wasn't kept."""
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time in which a trial was trained, in one process."""

    start: float
    end: float
    """Unix times."""
    host: str
    device: str
    process: int | None
    is_exact: bool
    """Whether the start was noted; else it is worked out from the seconds of the first reports."""


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """A trial with all that it reported."""

    id: str
    values: Mapping[str, Any]
    origin: str
    """first, warm_start, search, clone, labels, confirm; '' of a run that isn't a sweep."""
    ended: str
    """As Outcome.ended."""
    seconds: float
    gpu_hours: float
    best_step: int | None
    best: float | None
    """Of the run's metric, at that step."""
    points: Sequence[Point]
    spans: Sequence[Span]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A row of the leaderboard."""

    trial: str
    values: Mapping[str, Any]
    step: int
    metrics: Mapping[str, float | None]
    ended: str
    marks: Sequence[str] = ()
    """Words on it, as 'Pareto'."""


@dataclass(frozen=True, kw_only=True)
class SampleText:
    """A prompt with what each system answered."""

    prompt: str
    reference: str
    answers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """References against answers of one system; the last column is of answers that are no label."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Systems on the same records."""

    split: str
    metric: str
    """That decides."""
    comparison: Mapping[str, Any]
    """As evaluation.report.as_json has it."""
    samples: Sequence[SampleText]
    confusions: Mapping[str, Matrix]
    """By system."""
    tables: Mapping[str, Sequence[Sequence[str]]]
    """By title, the header first."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Something that was predicted, and what it came to."""

    name: str
    unit: str
    predicted: float | None
    actual: float | None


@dataclass(frozen=True, kw_only=True)
class FoundInData:
    """A finding of the data check."""

    severity: str
    kind: str
    text: str
    places: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the data check says."""

    verdict: str
    findings: Sequence[FoundInData]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Of each split."""


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command to copy."""

    meaning: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """All of it."""

    command: str
    """train, sweep or evaluate."""
    name: str
    run: str
    version: str
    """NAME@N."""
    state: str
    """champion, not promoted, or '' where nothing was to be promoted."""
    created: str
    """UTC, as 2026-01-31T12:00:00Z."""
    facts: Mapping[str, str]
    """What the reader should know, in order."""
    verdicts: Sequence[Sentence]
    metric: str
    lower_is_better: bool | None
    knobs: Sequence[Knob] = ()
    winner: str | None = None
    """A trial's id."""
    winner_values: Mapping[str, Any] = field(default_factory=dict)
    leaderboard: Sequence[Rank] = ()
    trials: Sequence[TrialRun] = ()
    compared: Sequence[Compared] = ()
    amounts: Sequence[Amount] = ()
    """Predicted and actual."""
    costs: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each part of the run."""
    data: DataFacts | None = None
    sections: Sequence[Section] = ()
    commands: Sequence[CommandLine] = ()
    card: str = ""
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """As report.json has it."""
        found = plain(dataclasses.asdict(self))
        assert isinstance(found, dict)
        return {"schema": found.pop("schema"), **found}


def plain(value: Any) -> Any:
    """Plain dicts, lists and numbers; None for what isn't a finite number, so that any JSON reader takes it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return finite(value) if isinstance(value, float) else value


def finite(value: float | None) -> float | None:
    """The number, None where it is none."""
    return None if value is None or not math.isfinite(value) else float(value)
