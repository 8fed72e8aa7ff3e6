"""The doctor's findings about a job's data, in numbers and as text for the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.data.tokens import Truncation


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers."""

    num_records: int
    kinds: dict[str, int]
    prompt_tokens: dict[str, int] | None
    """Median, 95th percentile and maximum, after truncation; None without a tokenizer."""
    completion_tokens: dict[str, int] | None
    """The same for tokens with loss."""
    truncation: Truncation | None
    labels: dict[str, int] | None
    """Count of each completion, commonest first, where completions look like classes."""


@dataclass(frozen=True)
class Found:
    """A suspicious finding: how often it occurs, and the first few."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `examine`. A job can run unless `problems` has entries."""

    splits: dict[str, SplitFacts]
    carved: bool
    max_tokens: int | None
    duplicates: int
    """Records of train that repeat an earlier one."""
    leaked: dict[str, Found]
    """Records of eval and test whose prompt (where prompts repeat in train anyway: prompt and answer) also occurs in
    train."""
    conflicts: Found
    """Prompts of train with different answers, or preferences both ways."""
    oddities: dict[str, int]
    warnings: list[str]
    problems: list[str]
    """Reasons why nothing can be learned from these data."""

    @property
    def verdict(self) -> str:
        if self.problems:
            return "not usable: " + "; ".join(self.problems)
        if not self.warnings:
            return "sound"
        return f"usable, with {len(self.warnings)} warning{'s' if len(self.warnings) > 1 else ''}"

    def text(self) -> str:
        """A summary for the terminal that ends with the verdict."""
        lines = _split_lines(self) + _token_lines(self) + _label_lines(self)
        lines += [f"  ! {warning}" for warning in self.warnings] + [f"  ✗ {problem}" for problem in self.problems]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def _split_lines(diagnosis: Diagnosis) -> list[str]:
    lines = ["data" + " " * 10 + "records  kind"]
    for name, split in diagnosis.splits.items():
        kinds = ", ".join(kind if len(split.kinds) == 1 else f"{kind} {count}" for kind, count in split.kinds.items())
        origin = " (carved from train)" if name == "eval" and diagnosis.carved else ""
        lines.append(f"  {name:<8}{split.num_records:>11}  {kinds}{origin}")
    return lines


def _token_lines(diagnosis: Diagnosis) -> list[str]:
    if diagnosis.max_tokens is None:
        return []
    title = f"tokens (at most {diagnosis.max_tokens})"
    lines = [f"{title:<24}{'median':>8}{'95 %':>8}{'longest':>9}{'cut':>8}"]
    for name, split in diagnosis.splits.items():
        assert split.truncation is not None
        for what, lengths, num_cut in (
            ("prompt", split.prompt_tokens, split.truncation.prompts_cut),
            ("completion", split.completion_tokens, split.truncation.completions_cut),
        ):
            assert lengths is not None
            numbers = f"{lengths['median']:>8}{lengths['95 %']:>8}{lengths['longest']:>9}{num_cut:>8}"
            lines.append(f"  {name:<6}{what:<16}{numbers}")
    return lines


def _label_lines(diagnosis: Diagnosis) -> list[str]:
    labels = diagnosis.splits["train"].labels if "train" in diagnosis.splits else None
    if labels is None:
        return []
    total, width = sum(labels.values()), min(max(map(len, labels)), 40)
    return ["labels of train"] + [
        f"  {label[:40]:<{width}}{count:>8}{count / total:>8.1%}" for label, count in labels.items()
    ]
