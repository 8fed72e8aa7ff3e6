"""The contract of a reward: one file each in this folder, chosen by conf/method/rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.examples import IGNORED, Example, Rollout
from raytune_llm.errors import InputError, require

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext, ModelRefs, Stage

Array = NDArray[np.float64]
LONGEST_SHOWN = 200
"""Characters of a prompt or completion in an error."""


class Scorer(Protocol):
    """A reward at work in one process."""

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        """One number for each rollout, in their order."""
        ...


@dataclass(frozen=True)
class RewardNeeds:
    """What a reward needs in addition to the completions."""

    versions: tuple[str, ...] = ()
    """Registry references of the versions whose files `open` reads."""
    stages: tuple[Stage, ...] = ()
    """Trained before the policy, in this order."""
    shared_keys: tuple[str, ...] = ()
    """Keys of the job, in full, that have one value for all trials."""


class Reward(Protocol):
    """What conf/method/rewards chooses; method.rewards holds the chosen ones by name."""

    @property
    def weight(self) -> float:
        """Its weight in the mixture; ≥ 0, 0 = not used."""
        ...

    @property
    def needs(self) -> RewardNeeds:
        """What it needs in addition to the completions."""
        ...

    def check(self, context: CheckContext) -> None:
        """Refuse what it can't score, before a model is loaded. Raises InputError."""
        ...

    def open(self, refs: ModelRefs) -> Scorer:
        """The scorer in this process. Raises InputError when it can't be had."""
        ...


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight below 0. Raises InputError."""
    require(weight >= 0, f"method.rewards.{name}.weight", weight, "≥ 0")


def shown(rollout: Rollout) -> str:
    """A rollout in an error."""
    return f"the prompt {rollout.prompt[-LONGEST_SHOWN:]!r} and completion {rollout.completion[:LONGEST_SHOWN]!r}"


def own_answer(example: Example, decode: Callable[[Sequence[int]], str]) -> Rollout:
    """The example's prompt with its own answer as the completion."""
    sequence = example["completion"]
    start = sequence.labels.count(IGNORED)
    prompt_ids, answer_ids = sequence.input_ids[:start], sequence.input_ids[start:]
    prompt, answer = decode(prompt_ids), decode(answer_ids)
    return Rollout(prompt_ids, answer_ids, prompt, answer, answer, ended=True)


def scores(key: str, scorer: Scorer, rollouts: Sequence[Rollout]) -> Array:
    """A scorer's own numbers, (n,). Raises InputError naming the key and the prompt of one that isn't finite."""
    found = np.array(scorer(rollouts), dtype=np.float64)
    for rollout, value in zip(rollouts, found, strict=True):
        if not math.isfinite(value):
            raise InputError(f"the reward of {key} is {value} for {shown(rollout)}; it must be a finite number")
    return found
