"""A diagnosis as text for the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

from raytune_llm.data.doctor.results import Preview, Results, SplitFacts
from raytune_llm.data.doctor.view import brief, printable
from raytune_llm.data.findings import Finding, Severity, many

SIGNS = {Severity.problem: "✗", Severity.warning: "!", Severity.note: "·"}
COLOURS = {Severity.problem: "31", Severity.warning: "33", Severity.note: "2"}
MOST_ROWS = 20
"""Labels and sources that a table lists."""
PREVIEWED = 500
"""Characters of a previewed segment."""


def is_colourful() -> bool:
    """Whether standard output shows colours: a terminal, and NO_COLOR (no-color.org) isn't set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def render(diagnosis: Results, *, whole: bool = False, colour: bool | None = None) -> str:
    """Tables, findings one by one, the verdict last; `whole`: with a preview of each source and what to start with."""
    colour = is_colourful() if colour is None else colour
    lines = [*_split_lines(diagnosis), *_token_lines(diagnosis), *_label_lines(diagnosis)]
    if whole:
        for preview in diagnosis.previews:
            lines += _preview_lines(preview, colour) if preview.split == "train" else ()
        lines += [f"  · {note}" for note in diagnosis.notes]
    for finding in diagnosis.findings:
        lines += _finding_lines(finding, colour)
    if whole and diagnosis.advice:
        lines.append(
            "start with "
            + " ".join(f"{advice.key}={advice.value}" for advice in diagnosis.advice)
            + "   # rules of thumb; reasons are in the report"
        )
    return "\n".join([*lines, f"verdict: {diagnosis.verdict}"])


def _split_lines(diagnosis: Results) -> Iterator[str]:
    yield "data" + " " * 10 + "records  kind"
    for name, split in diagnosis.splits.items():
        kinds = ", ".join(kind if len(split.kinds) == 1 else f"{kind} {count}" for kind, count in split.kinds.items())
        origin = " (carved from train)" if name == "eval" and diagnosis.carved else ""
        yield f"  {name:<8}{split.num_records:>11}  {kinds}{origin}"
        yield from _source_lines(split)


def _source_lines(split: SplitFacts) -> Iterator[str]:
    if len(split.sources) > 1 or split.weights:
        rows = sorted(split.sources.items(), key=lambda row: -row[1])
        yield from (f"{count:>21}  from {brief(source)}{split.times(source)}" for source, count in rows[:MOST_ROWS])
        if len(rows) > MOST_ROWS:
            yield f"{sum(count for _, count in rows[MOST_ROWS:]):>21}  from {many(len(rows) - MOST_ROWS, 'other')}"


def _token_lines(diagnosis: Results) -> Iterator[str]:
    if diagnosis.max_tokens is None:
        return
    title = f"tokens (at most {diagnosis.max_tokens})"
    yield f"{title:<24}{'median':>8}{'95 %':>8}{'longest':>9}{'cut':>8}"
    for name, split in diagnosis.splits.items():
        cut = split.truncation
        for what, lengths, num_cut in (
            ("prompt", split.prompt_tokens, cut.prompts_cut if cut else 0),
            ("completion", split.completion_tokens, cut.completions_cut if cut else 0),
        ):
            if lengths is not None:
                numbers = f"{lengths.median:>8}{lengths.most:>8}{lengths.longest:>9}{num_cut:>8}"
                yield f"  {name:<6}{what:<16}{numbers}"


def _label_lines(diagnosis: Results) -> Iterator[str]:
    labels = diagnosis.splits["train"].labels if "train" in diagnosis.splits else None
    if labels is None:
        return
    total, rows = sum(labels.values()), [(printable(label)[:40], count) for label, count in labels.items()]
    width = min(max(len(label) for label, _ in rows[:MOST_ROWS]), 40)
    yield "labels of train"
    yield from (f"  {label:<{width}}{count:>8}{count / total:>8.1%}" for label, count in rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        yield f"  … and {len(rows) - MOST_ROWS} more"


def _preview_lines(preview: Preview, colour: bool) -> Iterator[str]:
    marks = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    how = "in green" if colour else "in ⟦ ⟧"
    yield f"as the model sees {preview.where} ({preview.split}); what counts as the answer is {how}"
    for name, segments in preview.sequences.items():
        text = "".join(
            f"{marks[0]}{_short(part.text)}{marks[1]}" if part.has_loss else _short(part.text) for part in segments
        )
        if len(preview.sequences) > 1:
            yield f"  {name}:"
        yield from (f"  │ {line}" for line in text.rstrip("\n").split("\n"))


def _short(text: str) -> str:
    half = PREVIEWED // 2
    return text if len(text) <= PREVIEWED else f"{text[:half]} … {text[-half:]}"


def _finding_lines(finding: Finding, colour: bool) -> Iterator[str]:
    sign, text = SIGNS[finding.severity], printable(finding.text)
    if colour:
        text = textwrap.fill(text, max(40, shutil.get_terminal_size().columns - 4)).replace("\n", "\n    ")
        sign = f"\033[{COLOURS[finding.severity]}m{sign}\033[0m"
    yield f"  {sign} {text}"
    if finding.places:
        places = (f"{place.where} {place.excerpt!r}" if place.excerpt else place.where for place in finding.places)
        more = " …" if (finding.count or 0) > len(finding.places) else ""
        yield "      " + "; ".join(places).replace("\\\\", "\\") + more
