"""Response-based distillation (Hinton et al., 2015, arXiv 1503.02531): a student learns a teacher's whole distribution.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · τ² · D(p, q),      both means over the label tokens

p is the teacher, q the student, each over the teacher's k likeliest tokens and, as one more outcome, all the others
together; at k = the vocabulary the sums are exact. At temperature τ both are raised to 1/τ and normalised over these
outcomes. D is one of distillation.Divergence. The teacher runs once, before training, for all trials.
Self-distillation is a teacher that is an earlier version of the student.
"""

from __future__ import annotations

from dataclasses import dataclass

from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import Divergence, Student, divergence_term, label_terms, name_loss
from raytune_llm.models.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class Distill(Student):
    """Learn a teacher's distribution over tokens."""

    teacher: str | None
    """NAME@VERSION of the registry (an earlier version of the student: self-distillation), or a base by its folder or
    id on the hub, of the student's vocabulary; null = the student's own base, to stay near it."""
    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the divergence's; 0 ≤ alpha ≤ 1."""
    divergence: Divergence
    """forward KL(teacher ‖ student), reverse KL(student ‖ teacher) or jensen_shannon."""
    temperature: float
    """Softens both distributions; > 0, 1 = as they are. Gradients are scaled by its square."""
    teacher_top_k: int
    """The teacher's likeliest tokens that are kept for each label token; ≥ 1."""

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(self.temperature > 0, "method.temperature", self.temperature, "> 0")
        require(self.teacher_top_k >= 1, "method.teacher_top_k", self.teacher_top_k, "≥ 1")

    @property
    def needs(self) -> Needs:
        return Needs(
            teacher_top_k=self.teacher_top_k,
            teacher=self.teacher,
            shared_keys=("method.teacher", "method.teacher_top_k"),
        )

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        labels = label_terms(completion, self.alpha)
        if completion.teacher_logprobs is None:
            return name_loss(labels)
        divergence = divergence_term(completion, self.divergence, self.temperature, 1 - self.alpha)
        return name_loss(labels | {"divergence": divergence})
