"""How what was tuned is compared, and when it becomes champion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from raytune_llm.errors import require
from raytune_llm.evaluation.harness_config import Harness
from raytune_llm.evaluation.judges.base import Judge
from raytune_llm.evaluation.judges.none import NoJudge


class Promotion(Enum):
    """When a published version becomes champion."""

    proven = "proven"
    """Only when it beats the base (and the present champion) on the eval set by more than chance."""
    always = "always"
    never = "never"


@dataclass(frozen=True, kw_only=True)
class Promote:
    """What a version must be to become champion; promote=never is short for promote.when=never."""

    when: Promotion
    """proven (it beats base and champion by more than chance), always, never."""
    max_drift: float | None
    """Largest eval/drift at the published step, nats a token; a version above it isn't promoted, whatever `when` is.
    ≥ 0, or null for no bound."""

    def __post_init__(self) -> None:
        require(self.max_drift is None or self.max_drift >= 0, "promote.max_drift", self.max_drift, "≥ 0 or null")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How versions are compared, and trials by their answers."""

    max_examples: int | None
    """Examples used, drawn with the job's seed; null = all."""
    max_new_tokens: int
    """Longest generated answer, tokens."""
    batch_size: int
    """Prompts generated at once."""
    num_samples: int
    """Answers shown side by side in the report."""
    bootstrap_draws: int
    """Resamples behind each 95 % interval."""
    answer_after: str | None
    """Text after whose last occurrence the answer begins, in outputs and references alike, e.g. after reasoning written
    out; null = the whole output is the answer."""
    answers_per_eval: int
    """Eval records that a trial answers greedily at each of its evaluations where method.metric is a metric of answers
    (eval/accuracy, eval/token_f1 …), drawn with the job's seed from those of the comparison, the same for all trials;
    ≥ 1. Where method.metric is a loss term, none are answered."""
    drift: bool
    """Whether each evaluation of a trial also measures how far it is from the base on general prompts (data.guard):
    eval/drift and eval/drift_loss. Never of reward models."""
    drift_prompts: int
    """General prompts of it, the first ones; ≥ 1."""
    drift_tokens: int
    """Tokens of the base's answer to each, at most; ≥ 1."""
    judge: Judge
    """Who compares the answers in pairs after training; nobody by default."""
    harness: Harness
    """Tasks of lm-evaluation-harness for the tuned model and its base; none by default."""

    def __post_init__(self) -> None:
        counts = ("max_new_tokens", "batch_size", "bootstrap_draws", "answers_per_eval")
        for key in (*counts, "drift_prompts", "drift_tokens"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", getattr(self, key), "≥ 1")
        require(self.num_samples >= 0, "evaluation.num_samples", self.num_samples, "≥ 0")
        require(
            self.max_examples is None or self.max_examples >= 1,
            "evaluation.max_examples",
            self.max_examples,
            "≥ 1 or null",
        )

    def of_stage(self) -> Evaluation:
        """For the stages before a method's own training, which neither a judge nor the harness looks at."""
        return replace(self, judge=NoJudge(), harness=replace(self.harness, tasks=[]))

    def longest_answer(self, max_tokens: int) -> int:
        """Tokens of the longest answer by a base whose sequences have at most max_tokens: half is left to prompts."""
        return min(self.max_new_tokens, max_tokens // 2)
