"""What records lack that their method needs, and splits that are too small to measure anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raytune_llm.data.doctor.view import Check, Hits, Seen, View
from raytune_llm.data.findings import Finding, Severity
from raytune_llm.data.records import Rationale

SMALL_EVAL = 30
"""Fewer records than this leave 95 % intervals of about ±18 points on an accuracy."""


class Lacking(Check):
    """Counts Rationale records without a label or a rationale."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._total = 0
        self._no_label, self._no_rationale = Hits(), Hits()

    def see(self, seen: Seen) -> None:
        record = seen.record
        if isinstance(record, Rationale):
            self._total += 1
            if record.label is None:
                self._no_label.add(seen.index, record.prompt)
            if record.rationale is None:
                self._no_rationale.add(seen.index, record.prompt)

    def merge(self, later: Lacking) -> None:
        self._total += later._total
        self._no_label.merge(later._no_label)
        self._no_rationale.merge(later._no_rationale)

    def findings(self) -> Iterator[Finding]:
        name = self._view.name
        if name != "train":
            if self._total and self._no_label.count == self._total == len(self._view.records):
                text = f"no record of {name} has a label (output_text), so no answer can be scored"
                yield Finding("no_labels", Severity.problem, name, text, self._total)
            return
        for kind, what, hits in (
            ("no_label", "label (output_text)", self._no_label),
            ("no_rationale", "rationale", self._no_rationale),
        ):
            if hits.count:
                which = f"{hits.count:,} of {self._total:,}" if hits.count < self._total else f"all {self._total:,}"
                some = f"{which} train records {'has' if hits.count == 1 else 'have'}"
                some = "the only train record has" if self._total == 1 else some
                yield Finding(
                    kind,
                    Severity.warning,
                    name,
                    f"{some} no {what}; jobs/annotate.py has a teacher write it",
                    hits.count,
                    hits.places(self._view),
                )


def small(views: Iterable[View]) -> Iterator[Finding]:
    """Splits to measure on that have few records."""
    for view in views:
        if view.name != "train" and len(view.records) < SMALL_EVAL:
            count = len(view.records)
            yield Finding(
                "small",
                Severity.warning,
                view.name,
                f"{view.name} has {count} record{'' if count == 1 else 's'}: confidence intervals will be wide; use "
                f"at least {SMALL_EVAL}, better 200",
                count,
            )
