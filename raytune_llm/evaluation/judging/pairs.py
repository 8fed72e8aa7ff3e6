"""Two answers to one prompt, what a judge says of them in both orders, and the verdict that follows.

A verdict counts only when both orders agree; a judge that changes its mind with the order has no preference, which is a
tie.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference, Record
from raytune_llm.evaluation.report import Sample

CHOSEN, REJECTED = "chosen", "rejected"
"""The systems of a pair that people have judged."""


class Choice(Enum):
    """Which of the answers shown is better."""

    first = "A"
    second = "B"
    tie = "tie"

    @property
    def swapped(self) -> Choice:
        """The same answer, had the two been shown in the other order."""
        return {Choice.first: Choice.second, Choice.second: Choice.first}.get(self, Choice.tie)


@dataclass(frozen=True)
class Pair:
    """Answers of two systems to one prompt."""

    place: int
    """Of the prompt, among those that are compared."""
    prompt: str
    reference: str
    """The answer that is right; '' where it isn't known."""
    system: str
    other: str
    answer: str
    """Of `system`."""
    other_answer: str

    @property
    def is_identical(self) -> bool:
        """Whether there is nothing to judge: both answers are the same text."""
        return self.answer.strip() == self.other_answer.strip()


@dataclass(frozen=True)
class Judged:
    """A pair and what the judge says of it."""

    pair: Pair
    orders: tuple[Choice | None, Choice | None]
    """With the system's answer shown first, and with the other one first; None = no verdict."""
    asked: bool = True
    """False for identical answers, which are a tie."""

    @property
    def agrees(self) -> bool:
        """Whether both orders give the same verdict."""
        first, second = self.orders
        return first is not None and second is not None and first is second.swapped

    @property
    def disagrees(self) -> bool:
        """Whether the verdict changes with the order."""
        return None not in self.orders and not self.agrees

    @property
    def score(self) -> float | None:
        """1 where the system's answer wins, 0 where it loses, 0.5 for a tie; None without a verdict."""
        if None in self.orders:
            return None
        return 0.5 if not self.agrees else {Choice.first: 1.0, Choice.second: 0.0, Choice.tie: 0.5}[_set(self.orders)]

    @property
    def favoured(self) -> Choice | None:
        """The place that wins where the orders disagree: first or second."""
        return next(one for one in self.orders if one is not Choice.tie) if self.disagrees else None


def pairs_of(samples: Sequence[Sample], places: Sequence[int], systems: Sequence[str]) -> list[Pair]:
    """The newest system against each other one, and those between against the first, which the win rate is of."""
    first, newest = systems[0], systems[-1]
    matches = [(newest, other) for other in systems[:-1]] + [(other, first) for other in systems[1:-1]]
    return [
        Pair(place, sample.prompt, sample.reference, system, other, sample.answers[system], sample.answers[other])
        for system, other in matches
        for place, sample in ((place, samples[place]) for place in places)
    ]


def human_pairs(records: Sequence[Record], count: int) -> list[Pair]:
    """At most `count` pairs of which people have chosen one, without reference; the chosen one is the system's."""
    preferences = [record for record in records if isinstance(record, Preference)][:count]
    return [
        Pair(place, plain(one.prompt), "", CHOSEN, REJECTED, plain(one.chosen), plain(one.rejected))
        for place, one in enumerate(preferences)
    ]


def read_choice(text: str) -> Choice | None:
    """The choice in a judge's reply: A, B or tie alone, or JSON with that as its `verdict`, in a fence or not; None for
    anything else."""
    content = text.strip()
    if fenced := FENCE.fullmatch(content):
        content = fenced[1].strip()
    if (found := _choice(content)) is not None:
        return found
    try:
        reply = json.loads(content)
    except ValueError:
        return None
    return _choice(reply.get("verdict")) if isinstance(reply, dict) else None


FENCE = re.compile(r"```(?:json)?\n(.*)\n```", re.DOTALL)


def _choice(value: object) -> Choice | None:
    return next((one for one in Choice if isinstance(value, str) and value.strip().lower() == one.value.lower()), None)


def _set(orders: tuple[Choice | None, Choice | None]) -> Choice:
    """The first order's choice, which is known to be there."""
    assert orders[0] is not None
    return orders[0]
