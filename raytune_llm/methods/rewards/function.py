"""Reward by a function of the user's own, from a module that the job allows.

def reward(prompt: str, completion: str, answer: str) -> float
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.data.examples import Rollout
from raytune_llm.errors import InputError, require
from raytune_llm.methods.rewards.base import RewardNeeds, Scorer, check_weight, own_answer, scores, shown

if TYPE_CHECKING:
    from raytune_llm.methods.base import CheckContext, ModelRefs

KEY = "method.rewards.function.name"


@dataclass(frozen=True, kw_only=True)
class FunctionReward:
    """A function's number for prompt, completion and the record's answer."""

    weight: float
    """Its weight in the mixture; ≥ 0, 0 = not used."""
    name: str
    """MODULE:FUNCTION, called with (prompt, completion, answer), which returns a number; its module must be in
    allow_modules."""

    needs = RewardNeeds()

    def __post_init__(self) -> None:
        check_weight("function", self.weight)

    def check(self, context: CheckContext) -> None:
        """Call the function once, on the first record's own answer, where a job trains: others allow no modules."""
        if context.adapter is None:
            return
        scorer = FunctionScorer(self.name, context.allow_modules)
        if context.example is not None:
            scores("method.rewards.function", scorer, [own_answer(context.example, context.decode)])

    def open(self, refs: ModelRefs) -> Scorer:
        return FunctionScorer(self.name, refs.allow_modules)


class FunctionScorer:
    """The function's number for each rollout."""

    def __init__(self, name: str, allow_modules: Sequence[str]) -> None:
        """name: MODULE:FUNCTION. Raises InputError when the module isn't allowed or has no such function."""
        self._name, self._function = name, load_function(name, allow_modules)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Raises InputError naming the prompt on which the function failed."""
        found = []
        for rollout in rollouts:
            try:
                found.append(float(self._function(rollout.prompt, rollout.completion, rollout.answer)))
            except Exception as error:
                raise InputError(
                    f"{KEY}={self._name} raised {type(error).__name__}: {error} for {shown(rollout)}"
                ) from error
        return found


def load_function(name: str, allow_modules: Sequence[str]) -> Callable[[str, str, str], float]:
    """The function MODULE:FUNCTION of an allowed module. Raises InputError."""
    module, colon, attribute = name.partition(":")
    require(bool(module and colon and attribute), KEY, name, "MODULE:FUNCTION")
    require(
        module in allow_modules,
        KEY,
        name,
        f"a function of one of allow_modules={list(allow_modules)}; to run code of your own add "
        f"allow_modules=[{module}]",
    )
    try:
        function: Any = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise InputError(f"{KEY}={name}: {error}; the module must be on PYTHONPATH here and on every worker") from error
    require(callable(function), KEY, name, f"a function that {module} has")
    return function
