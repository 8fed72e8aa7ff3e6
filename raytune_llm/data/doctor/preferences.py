"""Pairs that teach nothing, and preferences that a length would explain."""

from __future__ import annotations

from collections.abc import Iterator

from raytune_llm.data.doctor.results import Pairs
from raytune_llm.data.doctor.view import Check, Hits, Seen, View
from raytune_llm.data.findings import Finding, Severity
from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference

BIASED = 0.8
FEWEST_PAIRS = 30
"""Of fewer pairs nothing is concluded about lengths."""
MOST_EQUAL = 0.5
"""A job is refused when more than this share of its pairs are no pairs."""


class Preferences(Check):
    """Counts pairs: which is longer, and which are the same once they are trimmed or cut."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._total = self._longer = self._shorter = 0
        self._places = [0, 0]
        self._same_text, self._same_tokens = Hits(), Hits()

    def see(self, seen: Seen) -> None:
        record = seen.record
        if not isinstance(record, Preference):
            return
        chosen, rejected = plain(record.chosen), plain(record.rejected)
        self._total += 1
        self._longer += len(chosen) > len(rejected)
        self._shorter += len(chosen) < len(rejected)
        if record.place is not None:
            self._places[record.place] += 1
        if chosen.split() == rejected.split():
            self._same_text.add(seen.index, chosen)
        elif seen.example is not None and "chosen" in seen.example and "rejected" in seen.example:
            one, other = seen.example["chosen"], seen.example["rejected"]
            if one.input_ids == other.input_ids and one.labels == other.labels:
                self._same_tokens.add(seen.index, chosen)

    def merge(self, later: Preferences) -> None:
        self._total += later._total
        self._longer += later._longer
        self._shorter += later._shorter
        self._places = [mine + its for mine, its in zip(self._places, later._places, strict=True)]
        self._same_text.merge(later._same_text)
        self._same_tokens.merge(later._same_tokens)

    def pairs(self) -> Pairs | None:
        """Their counts; None without any."""
        return Pairs(self._total, self._longer, self._shorter) if self._total else None

    def findings(self) -> Iterator[Finding]:
        equal = self._same_text.count + self._same_tokens.count
        severity = Severity.problem if equal > MOST_EQUAL * self._total else Severity.warning
        for kind, hits, when, remedy in (
            ("equal_pairs", self._same_text, "differ in whitespace only", "leave them out"),
            (
                "equal_after_cutting",
                self._same_tokens,
                "are the same tokens once they are cut",
                "raise data.max_tokens, or shorten what both begin with",
            ),
        ):
            if hits.count:
                view = self._view
                share = f"{hits.count:,} of {self._total:,} pairs"
                text = f"{view.name}: {share} have answers that {when}, so nothing is preferred: {remedy}"
                yield Finding(kind, severity, view.name, text, hits.count, hits.places(view))
        yield from self._of_lengths()
        yield from self._of_places()

    def _of_places(self) -> Iterator[Finding]:
        total, name = sum(self._places), self._view.name
        most = max(self._places)
        if total >= FEWEST_PAIRS and most >= BIASED * total:
            place = self._places.index(most)
            text = (
                f"{name}: choice is {place} in {most / total:.0%} of the pairs: is it the preferred candidate's number?"
            )
            yield Finding("choice_balance", Severity.warning, name, text, most)

    def _of_lengths(self) -> Iterator[Finding]:
        unequal, name = self._longer + self._shorter, self._view.name
        if unequal < FEWEST_PAIRS:
            return
        for what, count in (("longer", self._longer), ("shorter", self._shorter)):
            if count >= BIASED * unequal:
                yield Finding(
                    "length_bias",
                    Severity.warning,
                    name,
                    f"{name}: the {what} answer is preferred in {count / unequal:.0%} of the pairs: a model may learn "
                    f"that {what} is better; add pairs in which it isn't",
                    count,
                )
