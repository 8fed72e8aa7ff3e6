"""Response-based distillation (Hinton et al., 2015, arXiv 1503.02531): a student learns a teacher's whole distribution.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · τ² · D(p, q),      both means over the label tokens

p is the teacher, q the student, each over the teacher's k likeliest tokens and, as one more outcome, all the others
together; at k = the vocabulary the sums are exact. At temperature τ both are raised to 1/τ and normalised over these
outcomes. D is one of distillation.Divergence. The teacher runs once, before training, for all trials.
Self-distillation is a teacher that is an earlier version of the student.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import TopKStudent
from raytune_llm.stores.locations import LOCATION


@dataclass(frozen=True, kw_only=True)
class Distill(TopKStudent):
    """Learn a teacher's distribution over tokens."""

    teacher: str | None = field(metadata=LOCATION)
    """NAME@VERSION of the registry (an earlier version of the student: self-distillation), or a base by its folder or
    id on the hub, of the student's vocabulary; null = the student's own base, to stay near it."""

    @property
    def needs(self) -> Needs:
        return Needs(
            teacher_top_k=self.teacher_top_k,
            teacher=self.teacher,
            shared_keys=("method.teacher", "method.teacher_top_k"),
        )
