"""Reward by a function of the user's own, from a module that the job allows.

def reward(prompt: str, completion: str, answer: str) -> float
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from raytune_llm.data.examples import Rollout
from raytune_llm.errors import InputError, require
from raytune_llm.methods.rewards.mixture import where


class Function:
    """What the function returns for each rollout."""

    def __init__(self, name: str, allow_modules: Sequence[str]) -> None:
        """name: MODULE:FUNCTION. Raises ValueError when the module isn't allowed or has no such function."""
        self._name, self._function = name, load_function(name, allow_modules)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Raises InputError naming the prompt on which the function failed."""
        found = []
        for rollout in rollouts:
            try:
                found.append(float(self._function(rollout.prompt, rollout.completion, rollout.answer)))
            except Exception as error:
                raise InputError(
                    f"method.function={self._name} raised {type(error).__name__}: {error} for {where(rollout)}"
                ) from error
        return found


def load_function(name: str, allow_modules: Sequence[str]) -> Callable[[str, str, str], float]:
    """The function MODULE:FUNCTION of an allowed module. Raises ValueError."""
    module, colon, attribute = name.partition(":")
    require(bool(module and colon and attribute), "method.function", name, "MODULE:FUNCTION")
    require(
        module in allow_modules,
        "method.function",
        name,
        f"a function of one of allow_modules={list(allow_modules)}; to run code of your own add "
        f"allow_modules=[{module}]",
    )
    try:
        function: Any = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(
            f"method.function={name}: {error}; the module must be on PYTHONPATH here and on every worker"
        ) from error
    require(callable(function), "method.function", name, f"a function that {module} has")
    return function
