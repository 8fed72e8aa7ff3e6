"""Records that trials answer at each evaluation, so that they can be chosen by their answers, not only by their loss.

Light: it goes with every trial, so it imports neither torch nor transformers. Leaves out how answers are generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.evaluation.metrics import Metric, after, answer_directions, mean, task_answers


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What every trial of a job answers, greedily, and how the answers are scored."""

    prompts: tuple[list[int], ...]
    """Token ids of each record's prompt."""
    references: tuple[str, ...]
    """The answers that are right."""
    labels: tuple[str, ...] | None
    """Of a label task, those of the whole eval set; None for a text task."""
    max_new_tokens: int
    """Longest answer, tokens."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    answer_after: str | None
    """Text after whose last occurrence the answer begins; None = all of an output is the answer."""

    def metrics(self, outputs: Sequence[str]) -> dict[str, Metric]:
        """Every metric of the answers in these outputs, one for each prompt."""
        answers = [after(text, self.answer_after) for text in outputs]
        return task_answers(self.references, answers, self.labels)

    def undefined(self) -> dict[str, Metric]:
        """NaN for every metric: those of a model that computes no numbers any more, whatever it would write."""
        nothing = [math.nan] * len(self.references)
        return {name: mean(nothing, better) for name, better in answer_directions(self.labels).items()}
