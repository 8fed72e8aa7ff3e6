"""How earlier trainings of the same kind differed from what was predicted, from the cards of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

from raytune_llm.stores.card import Card
from raytune_llm.sweep.forecast import UNCHANGED, Amounts
from raytune_llm.training.rehearsal import Rehearsal

FARTHEST = 10.0
"""A ratio beyond this, or below its inverse, tells of an accident and not of the prediction."""


@dataclass(frozen=True)
class Kind:
    """Trainings that teach each other."""

    base_revision: str
    method: str
    is_sweep: bool
    rehearsal: Rehearsal

    def has(self, card: Card) -> bool:
        """Whether a card's training is one of them and was predicted."""
        kept = card.forecast
        return (
            bool(kept)
            and (card.base_revision, card.method) == (self.base_revision, self.method)
            and (kept["num_trials"] > 1) == self.is_sweep
            and (kept["source"], kept["device"]) == (self.rehearsal.source, self.rehearsal.device)
        )


def factors_of(kind: Kind, cards: Sequence[Card]) -> tuple[Amounts, int]:
    """(actual by predicted, each the median of the cards of this kind; how many those are)."""
    kept = [card.forecast for card in cards if kind.has(card)]
    if not kept:
        return UNCHANGED, 0
    names = [field.name for field in fields(Amounts)]
    return Amounts(**{name: median(_ratio(one, name) for one in kept) for name in names}), len(kept)


def _ratio(kept: dict[str, Any], name: str) -> float:
    predicted, actual = kept["raw"].get(name, 0.0), kept["actual"].get(name, 0.0)
    if predicted <= 0 or actual <= 0:
        return 1.0
    return min(FARTHEST, max(1 / FARTHEST, actual / predicted))
