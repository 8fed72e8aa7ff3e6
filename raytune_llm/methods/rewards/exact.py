"""Reward 1 where the completion is the record's answer, white space around it aside; else 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.data.examples import Rollout
from raytune_llm.data.records import Prompt
from raytune_llm.errors import InputError
from raytune_llm.methods.rewards.base import RewardNeeds, Scorer, check_weight

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext, ModelRefs


@dataclass(frozen=True, kw_only=True)
class ExactReward:
    """The record's own answer is right, any other wrong."""

    weight: float
    """Its weight in the mixture; ≥ 0, 0 = not used."""

    needs = RewardNeeds()

    def __post_init__(self) -> None:
        check_weight("exact", self.weight)

    def check(self, context: CheckContext) -> None:
        if all(isinstance(record, Prompt) for record in context.records):
            raise InputError(
                f"method.rewards.exact.weight={self.weight}: no record of data.train has an answer to compare with; "
                "add output_text to the records, or choose another reward with method/rewards"
            )

    def open(self, refs: ModelRefs) -> Scorer:
        return is_answer


def is_answer(rollouts: Sequence[Rollout]) -> list[float]:
    """1 or 0 for each rollout."""
    return [float(r.completion.strip() == r.answer.strip()) for r in rollouts]
