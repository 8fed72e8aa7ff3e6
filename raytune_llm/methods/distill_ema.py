"""Self-distillation from an average of oneself (Tarvainen and Valpola, 2017, arXiv 1703.01780): a student learns to
agree with the exponential moving average of its own weights.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · τ² · D(p, q),      both means over the label tokens
    w̄ ← d · w̄ + (1 − d) · w,  d = min(decay, 1 − 1/(n + 1))      after step n; w̄ begins with what training began with

q is the student, p the same model with the averaged weights, over its k likeliest tokens and the rest as one more
outcome (methods/distill.py has the same loss with a teacher that stands still). A step costs a forward pass more. The
result is the student, not the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.data.examples import Example
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import Divergence, Student, divergence_term, label_terms, name_loss
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerCallback


@dataclass(frozen=True, kw_only=True)
class DistillEMA(Student):
    """Learn from the average of oneself."""

    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the divergence's; 0 ≤ alpha ≤ 1."""
    divergence: Divergence
    """forward KL(average ‖ student), reverse KL(student ‖ average) or jensen_shannon."""
    temperature: float
    """Softens both distributions; > 0, 1 = as they are. Gradients are scaled by its square."""
    num_candidates: int
    """The average's likeliest tokens that are compared for each label token; ≥ 1."""
    decay: float
    """What of the average stays at each step; less in the first steps, when it would hold the student back; 0 ≤ decay
    < 1."""

    needs = Needs(alone="its teacher is an average of its own weights, which moves with it")

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(self.temperature > 0, "method.temperature", self.temperature, "> 0")
        require(self.num_candidates >= 1, "method.num_candidates", self.num_candidates, "≥ 1")
        require(0 <= self.decay < 1, "method.decay", self.decay, "0 ≤ decay < 1")

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        said = outputs["completion"]
        labels = label_terms(said, self.alpha)
        if said.teacher is None:
            return name_loss(labels)
        return name_loss(
            labels | {"divergence": divergence_term(said, self.divergence, self.temperature, 1 - self.alpha)}
        )

    def trainer(
        self,
        model: PreTrainedModel,
        examples: Sequence[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        from raytune_llm.methods.trainers.ema import ema_trainer

        return ema_trainer(
            self.terms,
            model,
            examples,
            indices,
            decay=self.decay,
            num_candidates=self.num_candidates,
            tokenizer=tokenizer,
            arguments=arguments,
            callbacks=callbacks,
        )
