"""How a teacher is asked: an instruction, a few solved examples, the record; and how its answer is laid out.

Few-shot chain of thought (Wei et al., 2022, arXiv 2201.11903). Templates stand in conf/prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from raytune_llm.data.records import Rationale
from raytune_llm.errors import require


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Few-shot chain of thought."""

    instruction: str
    """Stands first; may be empty."""
    example: str
    """A solved example: a template of {input}, {rationale} and {label}."""
    question: str
    """What is asked: a template of {input}, and of {label} where the teacher is to explain known labels."""
    rationale_after: str
    """Text in an answer after which the rationale begins; where it is missing, the rationale begins at the start."""
    label_after: str
    """Text in an answer that ends the rationale; its last occurrence, and the label is the rest of that line."""
    stop: list[str]
    """Texts that end an answer."""
    examples: str | None
    """Location of solved examples (records with output_text and rationale); null = drawn from those in data.train."""
    num_examples: int
    """Solved examples in a prompt, drawn with the job's seed; ≥ 0."""

    def __post_init__(self) -> None:
        for key, template, needed, allowed in (
            ("example", self.example, {"input", "rationale", "label"}, {"input", "rationale", "label"}),
            ("question", self.question, {"input"}, {"input", "label"}),
        ):
            named = _named(f"prompt.{key}", template)
            require(needed <= named <= allowed, f"prompt.{key}", template, f"a template of {_listed(allowed)}")
        require(bool(self.label_after), "prompt.label_after", repr(self.label_after), "a text that is not empty")
        require(self.num_examples >= 0, "prompt.num_examples", self.num_examples, "≥ 0")

    @property
    def needs_label(self) -> bool:
        """Whether only records with a label can be asked about."""
        return "label" in _named("prompt.question", self.question)

    def head(self, solved: Sequence[Rationale], seed: int) -> str:
        """What all prompts begin with: instruction and examples, drawn from the solved records."""
        count = min(self.num_examples, len(solved))
        drawn = random.Random(f"{seed}:examples").sample(list(solved), count)
        shown = [self.example.format(input=r.prompt, rationale=r.rationale, label=r.label) for r in drawn]
        return "".join(f"{part}\n\n" for part in ([self.instruction] if self.instruction else []) + shown)

    def ask(self, head: str, record: Rationale) -> str:
        """The whole prompt of a record."""
        return head + self.question.format(input=record.prompt, label=record.label)


def _named(key: str, template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key}={template} is not a template ({error}); double the braces that are text") from error


def _listed(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) + "; other braces doubled"
