"""The judge's contract: who says which of two answers is better, one file for each kind, chosen by evaluation/judge.

A judge reads one conversation (instruction, prompt, two answers) and replies with text. All that decides a reply is in
the session's `identity` and the conversation: replies are kept by these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter
from typing import Any, Protocol

from raytune_llm.errors import InputError, require
from raytune_llm.models.openai_client import Completion, Messages

PLACES = frozenset({"prompt", "reference", "first", "second"})
"""What rules.template may name."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a judge is asked, and when it is given up."""

    instruction: str
    """The rubric, and how to reply: JSON with the key verdict (A, B or tie), or one of these words alone. The system
    turn of every request."""
    template: str
    """The user turn: a template of {prompt}, {first} and {second}, the answers called A and B, and of {reference}."""
    reference: str | None
    """What {reference} stands for in the template: itself a template of {reference}, the answer that is right; empty
    for records without one. null = the judge never sees it."""
    retry: str
    """The user turn that follows a reply which can't be read."""
    attempts: int
    """Requests for one verdict while the replies can't be read, the first included; ≥ 1. Then there is no verdict."""
    max_failures: int
    """Failed requests, each after the client's retries, that are accepted; one more ends the judging; ≥ 0."""
    max_examples: int | None
    """Prompts that are judged, drawn with the job's seed from those that are compared; ≥ 1, or null for all."""
    human_pairs: int
    """Preferences (a chosen and a rejected answer) that are judged too where the records have them, to see how often
    the judge agrees with people; ≥ 0."""

    def __post_init__(self) -> None:
        needed, key = frozenset({"prompt", "first", "second"}), "evaluation.judge.rules"
        named = _named(f"{key}.template", self.template)
        listed = "a template of {prompt}, {first} and {second}, perhaps of {reference}; other braces doubled"
        require(needed <= named <= PLACES, f"{key}.template", self.template, listed)
        if self.reference is not None:
            is_template = _named(f"{key}.reference", self.reference) == {"reference"}
            require(is_template, f"{key}.reference", self.reference, "a template of {reference}, or null")
            shows = "a template that has {reference}, or rules.reference=null"
            require("reference" in named, f"{key}.template", self.template, shows)
        for name, least in (("attempts", 1), ("max_failures", 0), ("human_pairs", 0)):
            require(getattr(self, name) >= least, f"{key}.{name}", getattr(self, name), f"≥ {least}")
        most = self.max_examples
        require(most is None or most >= 1, f"{key}.max_examples", most, "≥ 1 or null")

    def messages(self, prompt: str, reference: str | None, first: str, second: str) -> Messages:
        """The conversation that asks which answer is better."""
        shown = "" if self.reference is None or not reference else self.reference.format(reference=reference)
        text = self.template.format(prompt=prompt, reference=shown, first=first, second=second)
        system = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return [*system, {"role": "user", "content": text}]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars for a million tokens; None = not known."""

    prompt: float | None
    completion: float | None

    def usd(self, num_prompt_tokens: int, num_completion_tokens: int) -> float | None:
        """What so many tokens cost."""
        if self.prompt is None or self.completion is None:
            return None
        return (num_prompt_tokens * self.prompt + num_completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, kw_only=True)
class JudgeSession:
    """A judge that can be asked."""

    name: str
    """In reports."""
    identity: dict[str, Any]
    """All that decides a reply besides the conversation, as plain JSON without secrets."""
    ask: Callable[[Messages], Completion]
    """One reply; called by several threads at once. Raises ServerError."""
    rules: Rules
    prices: Prices
    max_new_tokens: int
    """Longest reply, tokens."""
    concurrent_requests: int


class Judge(Protocol):
    """A kind of judge."""

    def open(self) -> JudgeSession | None:
        """Connect; None = nobody judges. Nothing is asked yet. Raises InputError for a key that is missing."""
        ...


def _named(key: str, template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError(f"{key}={template} is not a template ({error}); double the braces that are text") from error
