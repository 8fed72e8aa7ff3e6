"""Which of a teacher's answers become training data: a vote over samples, then filters.

Self-consistency (Wang et al., 2023, arXiv 2203.11171): of k sampled answers the commonest label wins, with the first
rationale that led to it. A filter rejects an answer as a whole; the record then keeps its own label and rationale, and
is dropped if it has no label, or with labels=teacher.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from raytune_llm.annotation.reading import Reading, is_same_label, normalized
from raytune_llm.annotation.teachers.base import Sampling
from raytune_llm.data.records import Rationale
from raytune_llm.errors import require

REPEATED_WORDS = 3
"""Length of the word groups whose repetition is counted."""


class Labels(Enum):
    """The source of the written labels."""

    given = "given"
    """The record's own if it has one, else the teacher's."""
    teacher = "teacher"
    """Always the teacher's: teacher-label distillation."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How answers are sampled, filtered and written."""

    num_samples: int
    """Answers sampled for each record; ≥ 1. More than one needs a temperature."""
    temperature: float
    """≥ 0; 0 = greedy."""
    top_p: float
    """Nucleus sampling: only the likeliest tokens whose probabilities add up to this are drawn; 0 < top_p ≤ 1."""
    max_new_tokens: int
    """Longest answer, tokens; ≥ 1."""
    batch_size: int
    """Requests in one batch of a worker, which is also the most that a killed job sends again; ≥ 1."""
    replace: bool
    """Whether records that have a rationale are annotated too, and theirs replaced."""
    labels: Labels
    """Labels that are written: given (the record's own, else the teacher's) or teacher (always the teacher's)."""
    agreement: bool
    """Reject answers that contradict a given label."""
    min_vote_share: float
    """Share of a record's samples that must give the winning label; 0 to 1."""
    min_words: int
    """Shortest rationale, words; ≥ 0."""
    max_words: int
    """Longest rationale, words; ≥ 1."""
    max_repetition: float
    """Largest share of a rationale's groups of three words that are repetitions; 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size", "max_words"):
            require(getattr(self, name) >= 1, f"annotation.{name}", getattr(self, name), "≥ 1")
        require(self.temperature >= 0, "annotation.temperature", self.temperature, "≥ 0")
        require(
            self.num_samples == 1 or self.temperature > 0,
            "annotation.num_samples",
            self.num_samples,
            "1 at annotation.temperature=0, where all samples are equal",
        )
        require(0 < self.top_p <= 1, "annotation.top_p", self.top_p, "0 < top_p ≤ 1")
        require(self.min_words >= 0, "annotation.min_words", self.min_words, "≥ 0")
        for name in ("min_vote_share", "max_repetition"):
            require(0 <= getattr(self, name) <= 1, f"annotation.{name}", getattr(self, name), "0 to 1")

    def sampling(self, stop: Sequence[str], seed: int) -> Sampling:
        """The sampling of all requests."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            stop=tuple(stop),
            seed=seed,
        )

    def select(self, record: Rationale, readings: Sequence[Reading | None]) -> Selection:
        """The outcome of a record's answers; None is an answer that could not be read."""
        votes = Counter(normalized(reading.label) for reading in readings if reading is not None)
        if not votes:
            return self._rejected(record, "not in the requested layout", None)
        winner, count = votes.most_common(1)[0]
        first = next(reading for reading in readings if reading is not None and normalized(reading.label) == winner)
        rejection = self._rejection(record, first, count / len(readings))
        if rejection is not None:
            return self._rejected(record, rejection, first.label)
        own = record.label if self.labels is Labels.given or is_same_label(record.label or "", first.label) else None
        return Selection(Rationale(record.prompt, own or first.label, first.rationale), None, first.label)

    def _rejection(self, record: Rationale, reading: Reading, vote_share: float) -> str | None:
        """The reason to reject an answer, None when it passes the filters."""
        words = reading.rationale.split()
        if vote_share < self.min_vote_share:
            return "samples disagree"
        if self.agreement and record.label is not None and not is_same_label(record.label, reading.label):
            return "contradicts the given label"
        if not self.min_words <= len(words) <= self.max_words:
            return "rationale too short or too long"
        if repetition(words) > self.max_repetition:
            return "rationale repeats itself"
        return None

    def _rejected(self, record: Rationale, rejection: str, label: str | None) -> Selection:
        is_kept = self.labels is Labels.given and record.label is not None
        return Selection(record if is_kept else None, rejection, label)


@dataclass(frozen=True)
class Selection:
    """The outcome of a record's answers."""

    record: Rationale | None
    """The record to write; None = the record is dropped."""
    rejection: str | None
    """Why the teacher's answer was rejected; None when it was accepted."""
    teacher_label: str | None
    """The label that won the vote; None when no answer could be read."""


def repetition(words: Sequence[str]) -> float:
    """Share of the groups of three words that occur earlier in the text; 0 to 1."""
    groups = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0
