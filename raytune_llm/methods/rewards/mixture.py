"""The mixture of rewards that a policy is trained on.

reward = Σ weight · clip(scale · reward) − length_penalty · tokens − unended_penalty · [it was cut off]

Each reward is clipped by itself: a clipped sum would give nothing for a second reward where the first is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raytune_llm.data.examples import Rollout
from raytune_llm.methods.rewards.base import Array, Scorer, scores


@dataclass(frozen=True)
class WeightedScorer:
    """A part of the mixture."""

    key: str
    """method.rewards.NAME, for errors."""
    weight: float
    scorer: Scorer


@dataclass(frozen=True)
class Mixture:
    """Scorers, scaled, clipped, weighted and penalised."""

    parts: tuple[WeightedScorer, ...]
    scale: float
    clip: float | None
    """Largest size of a scaled reward; None = no bound."""
    length_penalty: float
    """Subtracted for each token."""
    unended_penalty: float
    """Subtracted when the completion was cut off."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Array:
        """The reward of each rollout, (n,). Raises InputError naming reward and prompt when one isn't a number."""
        total = np.zeros(len(rollouts))
        for part in self.parts:
            reward = self.scale * scores(part.key, part.scorer, rollouts)
            if self.clip is not None:
                reward = reward.clip(-self.clip, self.clip)
            total += part.weight * reward
        lengths = np.array([len(rollout.completion_ids) for rollout in rollouts], dtype=np.float64)
        unended = np.array([not rollout.ended for rollout in rollouts], dtype=np.float64)
        return total - self.length_penalty * lengths - self.unended_penalty * unended

    def verdicts(self, rollouts: Sequence[Rollout]) -> Array:
        """The numbers that decide wins, (n,): those of the first part only."""
        return scores(self.parts[0].key, self.parts[0].scorer, rollouts)
