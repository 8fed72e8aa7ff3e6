"""A comparison as people read it: a table for the terminal, a page of Markdown, a dict for JSON."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raytune_llm.evaluation.compare import (
    Comparison,
    Difference,
    Estimate,
    VerdictKind,
    better,
    number,
    verdict_kind,
)
from raytune_llm.evaluation.metrics import MAIN_ANSWER_METRICS, Confusion
from raytune_llm.evaluation.terms import LOSS, Better

LONGEST_SAMPLE = 600
"""Characters shown of a prompt or an answer."""


@dataclass(frozen=True)
class Sample:
    """One prompt and what each system answered."""

    prompt: str
    reference: str
    answers: dict[str, str]
    """By system."""


def table(comparison: Comparison) -> str:
    """Aligned columns for the terminal: each system's metrics and the last system's difference from each other one."""
    rows = _metric_rows(comparison)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, _footnote(comparison)])


def markdown(
    comparison: Comparison,
    title: str,
    facts: Mapping[str, object],
    *,
    metric: str,
    confusions: Mapping[str, Confusion] | None = None,
    samples: Sequence[Sample] = (),
    tables: Mapping[str, list[list[str]]] | None = None,
) -> str:
    """The whole report.

    Args:
        facts: what the reader should know first (base, adapter, data …), in order.
        metric: the one the verdict is about.
        confusions: by system, for a label task.
        samples: shown side by side.
        tables: further ones by their titles, the header first.
    """
    verdicts = [better(comparison, metric, reference=reference).text for reference in comparison.systems[:-1]]
    if (contradicting := contradiction(comparison, metric)) is not None:
        verdicts.append(contradicting)
    parts = [f"# {_cell(title)}", *(f"**{_cell(text[0].upper() + text[1:])}.**" for text in verdicts)]
    if facts:
        parts.append("\n".join(f"- {_cell(key)}: {_cell(value)}" for key, value in facts.items()))
    parts += ["## Metrics", _grid(_metric_rows(comparison)), _cell(_footnote(comparison))]
    if confusions:
        parts += ["## Labels", _grid(_class_rows(confusions))]
        parts += [_outside(confusions), *(_confusion(system, found) for system, found in confusions.items())]
    for name, rows in (tables or {}).items():
        parts += [f"## {_cell(name)}", _grid(rows)]
    if samples:
        parts += ["## Samples", _grid(_sample_rows(comparison, samples))]
    return "\n\n".join(parts) + "\n"


def contradiction(comparison: Comparison, metric: str) -> str | None:
    """A sentence where the newest system beats the first one on `metric` but is worse on the loss, or on one of the
    main metrics of answers; None where nothing contradicts."""
    newest, first = comparison.systems[-1], comparison.systems[0]
    if better(comparison, metric).outcome is not VerdictKind.better:
        return None
    others = [name for name in (LOSS, *(f"eval/{name}" for name in MAIN_ANSWER_METRICS)) if name != metric]
    worse = [
        f"{name} ({number(comparison.metrics[name][first].value)} to {number(comparison.metrics[name][newest].value)})"
        for name in others
        if name in comparison.metrics and verdict_kind(comparison.difference(name)) is VerdictKind.worse
    ]
    if not worse:
        return None
    return f"{metric} and other measures disagree: {newest} is worse than {first} on {', '.join(worse)}"


def as_json(comparison: Comparison, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain dicts, lists and numbers, with the details; null for what isn't a finite number, so that any JSON reader
    takes it."""
    found = dataclasses.asdict(comparison)
    for row, difference in zip(found["differences"], comparison.differences, strict=True):
        row["significant"] = difference.significant
    return _plain({**found, **(details or {})})


def _metric_rows(comparison: Comparison) -> list[list[str]]:
    newest, others = comparison.systems[-1], comparison.systems[:-1]
    header = ["metric", "better", *comparison.systems]
    for other in others:
        header += [f"{newest} - {other}", ""]
    rows = [header]
    for name, estimates in comparison.metrics.items():
        row = [
            name,
            _direction(comparison.directions[name]),
            *(_span(estimates[system]) for system in comparison.systems),
        ]
        for other in others:
            difference = comparison.difference(name, newest, other)
            row += [_span(difference, sign=True), _word(difference)]
        rows.append(row)
    return rows


def _direction(better: Better) -> str:
    return "" if better is Better.neither else better.value


def _word(difference: Difference) -> str:
    outcome = verdict_kind(difference)
    if outcome is None:
        return "differs" if difference.significant else ""
    return {VerdictKind.alike: "not significant"}.get(outcome, outcome.value)


def _span(found: Estimate | Difference, *, sign: bool = False) -> str:
    ends = (number(end, sign=sign) for end in (found.low, found.high))
    return f"{number(found.value, sign=sign)} [{', '.join(ends)}]"


def _footnote(comparison: Comparison) -> str:
    return (
        f"{comparison.num_examples} examples; in brackets 95 % intervals "
        f"from {comparison.num_draws} bootstrap draws, paired for differences."
    )


def _class_rows(confusions: Mapping[str, Confusion]) -> list[list[str]]:
    header = ["label", "support"]
    for system in confusions:
        header += [f"{system} precision", f"{system} recall", f"{system} F1"]
    rows = [header]
    classes = [found.classes() for found in confusions.values()]
    for scores in zip(*classes, strict=True):
        row = [scores[0].label, str(scores[0].support)]
        for score in scores:
            row += [number(score.precision), number(score.recall), number(score.f1)]
        rows.append(row)
    return rows


def _outside(confusions: Mapping[str, Confusion]) -> str:
    counted = [f"{_cell(s)} {found.outside} of {sum(map(sum, found.counts))}" for s, found in confusions.items()]
    return "Answers that are none of the labels: " + ", ".join(counted) + "."


def _confusion(system: str, found: Confusion) -> str:
    rows = [[f"{system}: reference / answer", *found.labels, "(other)"]]
    rows += [[label, *map(str, counts)] for label, counts in zip(found.labels, found.counts, strict=True)]
    return _grid(rows)


def _sample_rows(comparison: Comparison, samples: Sequence[Sample]) -> list[list[str]]:
    rows = [["prompt", "reference", *comparison.systems]]
    for sample in samples:
        texts = (sample.prompt, sample.reference, *(sample.answers[system] for system in comparison.systems))
        rows.append([text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + " …" for text in texts])
    return rows


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


_MARKS = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|(?<=\])\(")
"""What Markdown would read as code, emphasis, a cell's end, formulas or a link's address."""


def _cell(value: object) -> str:
    """Text that stays as it is inside a table, whatever a model wrote."""
    text = html.escape(str(value).strip(), quote=False)
    return _MARKS.sub(r"\\\g<0>", text).replace("\r", "").replace("\n", "<br>") or " "


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value
