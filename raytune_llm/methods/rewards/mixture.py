"""Sources of reward, weighed, scaled, clipped and added up; a bad one names its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.examples import Rollout
from raytune_llm.errors import InputError

Array = NDArray[np.float64]
LONGEST_SHOWN = 200


class Source(Protocol):
    """One kind of reward."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        """One number for each rollout, in their order."""
        ...


@dataclass(frozen=True)
class Weighed:
    """A source of the mixture; its name is the knob's: method.NAME_weight."""

    name: str
    weight: float
    source: Source


@dataclass(frozen=True)
class Mixture:
    """What the policy is trained on."""

    parts: tuple[Weighed, ...]
    scale: float
    clip: float | None
    """Largest size of the scaled sum; None = no bound."""
    length_penalty: float
    """Taken off for each token."""
    unended_penalty: float
    """Taken off when the completion was cut off."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Array:
        """The reward of each rollout, (n,). Raises InputError naming source and prompt when one isn't a number."""
        total = np.zeros(len(rollouts))
        for part in self.parts:
            total += part.weight * scores(part, rollouts)
        total *= self.scale
        if self.clip is not None:
            total = total.clip(-self.clip, self.clip)
        lengths = np.array([len(rollout.completion_ids) for rollout in rollouts], dtype=np.float64)
        unended = np.array([not rollout.ended for rollout in rollouts], dtype=np.float64)
        return total - self.length_penalty * lengths - self.unended_penalty * unended

    def verdicts(self, rollouts: Sequence[Rollout]) -> Array:
        """What wins are counted by, (n,): the first source alone, which is the reward model where there is one."""
        return scores(self.parts[0], rollouts)


def scores(part: Weighed, rollouts: Sequence[Rollout]) -> Array:
    """A source's own numbers, (n,). Raises InputError naming the prompt of one that isn't finite."""
    found = np.array(part.source(rollouts), dtype=np.float64)
    for rollout, value in zip(rollouts, found, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"the {part.name} reward (method.{part.name}_weight) is {value} for {where(rollout)}; it must be a "
                "finite number"
            )
    return found


def where(rollout: Rollout) -> str:
    """A rollout in an error."""
    return f"the prompt {rollout.prompt[-LONGEST_SHOWN:]!r} and completion {rollout.completion[:LONGEST_SHOWN]!r}"
