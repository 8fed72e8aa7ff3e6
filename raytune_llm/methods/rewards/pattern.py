"""Reward 1 where a regular expression is found in the completion, else 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.data.examples import Rollout
from raytune_llm.errors import InputError
from raytune_llm.methods.rewards.base import RewardNeeds, Scorer, check_weight

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext, ModelRefs


@dataclass(frozen=True, kw_only=True)
class PatternReward:
    """Completions should contain a pattern."""

    weight: float
    """Its weight in the mixture; ≥ 0, 0 = not used."""
    regex: str
    """Regular expression (Python's) that is searched for in the completion."""

    needs = RewardNeeds()

    def __post_init__(self) -> None:
        check_weight("pattern", self.weight)
        try:
            re.compile(self.regex)
        except re.error as error:
            raise InputError(
                f"method.rewards.pattern.regex={self.regex!r} is not a regular expression: {error}; see Python's re"
            ) from error

    def check(self, context: CheckContext) -> None:
        """Any completion can be searched."""

    def open(self, refs: ModelRefs) -> Scorer:
        pattern = re.compile(self.regex)

        def contains(rollouts: Sequence[Rollout]) -> list[float]:
            return [float(pattern.search(r.completion) is not None) for r in rollouts]

        return contains
