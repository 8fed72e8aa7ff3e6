"""Rewards that only look at the text: the record's own answer, or a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raytune_llm.data.examples import Rollout


class ExactAnswer:
    """1 where the completion is the record's answer, white space around it aside; else 0."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(r.completion.strip() == r.answer.strip()) for r in rollouts]


class Pattern:
    """1 where a regular expression is found in the completion, else 0."""

    def __init__(self, pattern: str) -> None:
        """Raises ValueError when it isn't a regular expression of Python's re."""
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"method.pattern={pattern!r} is not a regular expression: {error}; see Python's re"
            ) from error

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(self._pattern.search(r.completion) is not None) for r in rollouts]
