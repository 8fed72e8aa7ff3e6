"""A teacher's prompt: an instruction, a few solved examples and the record's question; and the layout of its answer.

Few-shot chain of thought (Wei et al., 2022, arXiv 2201.11903). The templates are in conf/prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import Formatter

from raytune_llm.data.records import Rationale
from raytune_llm.errors import InputError, require
from raytune_llm.stores.locations import LOCATION


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Few-shot chain of thought."""

    instruction: str
    """The beginning of the prompt; may be empty."""
    example: str
    """A solved example: a template of {input}, {rationale} and {label}."""
    question: str
    """The question: a template of {input}, and of {label} if the teacher is to explain known labels."""
    rationale_after: str
    """Text in an answer after which the rationale begins; without it, the rationale begins at the start."""
    label_after: str
    """Text in an answer whose last occurrence ends the rationale; the label is the rest of that line."""
    stop: list[str]
    """Texts that end an answer."""
    examples: str | None = field(metadata=LOCATION)
    """Location of solved examples (records with output_text and rationale); null = drawn from those in data.train."""
    num_examples: int
    """Solved examples in the prompt, drawn with the job's seed; ≥ 0."""

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
        """Whether only records with a label can be annotated."""
        return "label" in _named("prompt.question", self.question)

    def preamble(self, solved: Sequence[Rationale], seed: int) -> str:
        """The common beginning of all prompts: the instruction, and examples drawn from the solved records."""
        count = min(self.num_examples, len(solved))
        drawn = random.Random(f"{seed}:examples").sample(list(solved), count)
        shown = [self.example.format(input=r.prompt, rationale=r.rationale, label=r.label) for r in drawn]
        return "".join(f"{part}\n\n" for part in ([self.instruction] if self.instruction else []) + shown)

    def render(self, preamble: str, record: Rationale) -> str:
        """The whole prompt of a record."""
        return preamble + self.question.format(input=record.prompt, label=record.label)


def _named(key: str, template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError(f"{key}={template} is not a template ({error}); double the braces that are text") from error


def _listed(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) + "; other braces doubled"
