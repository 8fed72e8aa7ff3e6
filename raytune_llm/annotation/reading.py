"""A teacher's response as rationale and label."""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.annotation.prompt import Prompt


@dataclass(frozen=True)
class Reading:
    """The parts of a response; neither is empty."""

    rationale: str
    label: str


def read(text: str, prompt: Prompt) -> Reading | None:
    """A response's rationale and label, None when it isn't in the requested layout. A full stop after the label is
    dropped."""
    for stop in prompt.stop:
        text = text.partition(stop)[0]
    if prompt.rationale_after and prompt.rationale_after in text:
        text = text.partition(prompt.rationale_after)[2]
    rationale, marker, rest = text.rpartition(prompt.label_after)
    label = rest.strip().partition("\n")[0].strip().removesuffix(".").strip()
    rationale = " ".join(rationale.split())
    return Reading(rationale, label) if marker and rationale and label else None


def is_same_label(one: str, other: str) -> bool:
    """Whether two labels are equal apart from case, white space and a full stop at the end."""
    return normalized(one) == normalized(other)


def normalized(label: str) -> str:
    """The form in which labels are compared."""
    return " ".join(label.casefold().split()).removesuffix(".").strip()
