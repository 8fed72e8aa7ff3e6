"""Reward by a reward model (methods/reward.py), which reads a completion to its end as it read the preferences. Where
none is named it is trained first, from the job's own preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.errors import InputError, require
from raytune_llm.methods.base import Method, Stage
from raytune_llm.methods.rewards.base import RewardNeeds, Scorer, check_weight

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext, ModelRefs

KEY = "method.rewards.model"


@dataclass(frozen=True, kw_only=True)
class ModelReward:
    """The score of a reward model."""

    weight: float
    """Its weight in the mixture; ≥ 0, 0 = not used."""
    adapter: str | None
    """Registry reference of a reward model of the same base, NAME@version; null = trained first, from the
    preferences."""
    steps: int
    """Steps of the reward model that is trained first; ≥ 1."""
    method: Method
    """The method that trains it."""

    def __post_init__(self) -> None:
        check_weight("model", self.weight)
        require(self.steps >= 1, f"{KEY}.steps", self.steps, "≥ 1")

    @property
    def needs(self) -> RewardNeeds:
        if self.adapter is not None:
            return RewardNeeds(versions=(self.adapter,), shared_keys=(f"{KEY}.adapter",))
        stage = Stage(
            name="reward",
            meaning="a reward model from the preferences",
            method=self.method,
            steps=self.steps,
            data=None,
            data_key=None,
            key=f"{KEY}.adapter",
            keys=(f"{KEY}.steps", f"{KEY}.method"),
            remedy=f"name a reward model with {KEY}.adapter=NAME@version, or choose another reward, e.g. "
            "method/rewards=exact",
        )
        return RewardNeeds(stages=(stage,), shared_keys=(f"{KEY}.adapter",))

    def check(self, context: CheckContext) -> None:
        from raytune_llm.methods.model_refs import resolve_ref
        from raytune_llm.stores.registry import Registry

        if self.adapter is not None:
            registry = Registry(context.registry_dir)
            resolve_ref(registry, f"{KEY}.adapter", self.adapter, kind="reward", base=context.base)

    def open(self, refs: ModelRefs) -> Scorer:
        from raytune_llm.methods.common.reward_scorer import open_scorer

        if self.adapter is None:
            raise InputError(
                f"{KEY}.adapter=null with {KEY}.weight={self.weight}: no reward model has been trained for this job; "
                f"name one, or give the job itself a {KEY}.weight above 0"
            )
        return open_scorer(refs, self.adapter)
