"""What the doctor found out about a job's data, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from raytune_llm.data.findings import Finding, Severity
from raytune_llm.data.tokenizing.tokens import Truncation


@dataclass(frozen=True)
class Histogram:
    """How many sequences are how long."""

    edges: tuple[int, ...]
    """Bin i holds lengths from edges[i] up to, not including, edges[i + 1]; tokens."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Lengths:
    """Lengths of sequences in tokens, after truncation."""

    median: int
    most: int
    """The 95th percentile."""
    longest: int
    total: int
    histogram: Histogram


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split of preferences."""

    total: int
    longer_preferred: int
    shorter_preferred: int
    """By characters; the rest are of equal length."""


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers."""

    num_records: int
    kinds: dict[str, int]
    sources: dict[str, int]
    """Records of each file or data set."""
    num_bytes: int
    """Of all texts, as UTF-8."""
    prompt_tokens: Lengths | None
    """Tokens without loss, of each sequence that has any with; None without a tokenizer."""
    completion_tokens: Lengths | None
    """Tokens with loss."""
    truncation: Truncation | None
    labels: dict[str, int] | None
    """Count of each answer, commonest first, spellings of one joined, where answers look like classes."""
    pairs: Pairs | None
    scripts: dict[str, float]
    """Share of each script among the letters of a sample."""
    languages: dict[str, float]
    """Share of each language, by its ISO 639 code, among the texts of a sample whose language is sure."""
    weights: dict[str, float] = field(default_factory=dict)
    """Passes over the records of a source in an epoch, of those where it isn't one."""

    def times(self, source: str) -> str:
        """What to write behind a source that has a weight: ' × 2'."""
        return f" × {self.weights[source]:g}" if source in self.weights else ""


@dataclass(frozen=True)
class Segment:
    """A part of a sequence."""

    text: str
    has_loss: bool
    """Whether the model learns to write it."""


@dataclass(frozen=True)
class Preview:
    """One record as the model sees it."""

    split: str
    source: str
    where: str
    sequences: dict[str, tuple[Segment, ...]]
    """By the method's names, e.g. completion, or chosen and rejected."""


@dataclass(frozen=True)
class Advice:
    """A setting to start with, and why."""

    key: str
    """As the user writes it, e.g. tuning.steps."""
    value: str
    reason: str


@dataclass(frozen=True)
class Results:
    """All that `examine` found. A job can run unless `problems` has entries."""

    splits: dict[str, SplitFacts]
    carved: bool
    max_tokens: int | None
    """Longest sequence; None without a tokenizer."""
    findings: list[Finding]
    """Worst first."""
    advice: list[Advice] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What to know of the training that these data make, e.g. steps an epoch."""

    @property
    def warnings(self) -> list[str]:
        """What would spoil or mislead."""
        return [found.text for found in self.findings if found.severity is Severity.warning]

    @property
    def problems(self) -> list[str]:
        """Reasons why the job is refused."""
        return [found.text for found in self.findings if found.severity is Severity.problem]

    @property
    def verdict(self) -> str:
        if len(self.problems) > 1:
            return f"not usable: {len(self.problems)} problems"
        if self.problems:
            return f"not usable: {self.problems[0]}"
        if not self.warnings:
            return "sound"
        return f"usable, with {len(self.warnings)} warning{'s' if len(self.warnings) > 1 else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        findings = [{**asdict(found), "severity": found.severity.value} for found in self.findings]
        return {"verdict": self.verdict, **asdict(self), "findings": findings}
