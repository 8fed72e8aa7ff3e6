"""A teacher's answer as rationale and label."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.annotation.prompt import Prompt


@dataclass(frozen=True)
class Reading:
    """What an answer says."""

    rationale: str
    label: str


def read(text: str, prompt: Prompt) -> Reading | None:
    """The answer's parts, None where it isn't laid out as asked. A full stop at the label's end is dropped."""
    for stop in prompt.stop:
        text = text.partition(stop)[0]
    if prompt.rationale_after and prompt.rationale_after in text:
        text = text.partition(prompt.rationale_after)[2]
    rationale, mark, rest = text.rpartition(prompt.label_after)
    label = rest.strip().partition("\n")[0].strip().removesuffix(".").strip()
    rationale = " ".join(rationale.split())
    return Reading(rationale, label) if mark and rationale and label else None


def same(one: str, other: str) -> bool:
    """Whether two labels say the same: case, white space and a full stop at the end don't count."""
    return normal(one) == normal(other)


def normal(label: str) -> str:
    """The form by which labels are compared."""
    return " ".join(label.casefold().split()).removesuffix(".").strip()
