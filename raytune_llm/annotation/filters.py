"""Which of a teacher's answers become training data: a vote over samples, then filters.

Self-consistency (Wang et al., 2023, arXiv 2203.11171): of k sampled answers the commonest label wins, with the first
rationale that led to it. An answer that a filter throws away is thrown away whole; the record then keeps what it had,
and is left out where that is no label, or where labels=teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from raytune_llm.annotation.reading import Reading, normal, same
from raytune_llm.annotation.teachers.base import Sampling
from raytune_llm.data.records import Rationale
from raytune_llm.errors import require

REPEATED_WORDS = 3
"""Length of the word groups by whose repetition a rationale is judged."""


class Labels(Enum):
    """Whose labels the written records have."""

    given = "given"
    """The record's own where it has one, else the teacher's."""
    teacher = "teacher"
    """The teacher's always: teacher-label distillation."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How answers are drawn, chosen and written."""

    num_samples: int
    """Answers asked for of each record; ≥ 1. More than one needs a temperature."""
    temperature: float
    """0 = the teacher's first choice always; ≥ 0."""
    top_p: float
    """Only the likeliest tokens that together have this probability are drawn; 0 < top_p ≤ 1."""
    max_new_tokens: int
    """Longest answer; ≥ 1."""
    batch_size: int
    """Requests that a worker answers at once, and all that a killed job may ask again; ≥ 1."""
    replace: bool
    """Whether records that have a rationale are asked about too, and theirs replaced."""
    labels: Labels
    """Whose labels are written: given (the record's own, else the teacher's) or teacher."""
    agreement: bool
    """Throw away answers that contradict a given label."""
    min_vote_share: float
    """Share of a record's samples that must give the winning label; 0 to 1."""
    min_words: int
    """Shortest rationale; ≥ 0."""
    max_words: int
    """Longest rationale; ≥ 1."""
    max_repetition: float
    """Largest share of a rationale's groups of three words that stood in it before; 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size", "max_words"):
            require(getattr(self, name) >= 1, f"annotation.{name}", getattr(self, name), "≥ 1")
        require(self.temperature >= 0, "annotation.temperature", self.temperature, "≥ 0")
        require(
            self.num_samples == 1 or self.temperature > 0,
            "annotation.num_samples",
            self.num_samples,
            "1 at annotation.temperature=0, where all samples are the same",
        )
        require(0 < self.top_p <= 1, "annotation.top_p", self.top_p, "0 < top_p ≤ 1")
        require(self.min_words >= 0, "annotation.min_words", self.min_words, "≥ 0")
        for name in ("min_vote_share", "max_repetition"):
            require(0 <= getattr(self, name) <= 1, f"annotation.{name}", getattr(self, name), "0 to 1")

    def sampling(self, stop: Sequence[str], seed: int) -> Sampling:
        """How answers are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=tuple(stop),
            seed=seed,
        )

    def choose(self, record: Rationale, readings: Sequence[Reading | None]) -> Selection:
        """What becomes of a record and the answers about it, None being one that couldn't be read."""
        votes = Counter(normal(reading.label) for reading in readings if reading is not None)
        if not votes:
            return self._without(record, "not laid out as asked", None)
        winner, count = votes.most_common(1)[0]
        first = next(reading for reading in readings if reading is not None and normal(reading.label) == winner)
        reason = self._fault(record, first, count / len(readings))
        if reason is not None:
            return self._without(record, reason, first.label)
        own = record.label if self.labels is Labels.given or same(record.label or "", first.label) else None
        return Selection(Rationale(record.prompt, own or first.label, first.rationale), None, first.label)

    def _fault(self, record: Rationale, reading: Reading, vote_share: float) -> str | None:
        """The filter that throws this answer away."""
        words = reading.rationale.split()
        if vote_share < self.min_vote_share:
            return "samples disagree"
        if self.agreement and record.label is not None and not same(record.label, reading.label):
            return "contradicts the given label"
        if not self.min_words <= len(words) <= self.max_words:
            return "rationale too short or too long"
        if repetition(words) > self.max_repetition:
            return "rationale repeats itself"
        return None

    def _without(self, record: Rationale, reason: str, label: str | None) -> Selection:
        is_kept = self.labels is Labels.given and record.label is not None
        return Selection(record if is_kept else None, reason, label)


@dataclass(frozen=True)
class Selection:
    """What becomes of a record."""

    record: Rationale | None
    """None: left out."""
    reason: str | None
    """Why the teacher's answer was thrown away; None where it was taken."""
    teacher_label: str | None
    """What the teacher's samples voted for; None when none could be read."""


def repetition(words: Sequence[str]) -> float:
    """Share of the groups of three words that stood in the text before; 0 to 1."""
    groups = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0
