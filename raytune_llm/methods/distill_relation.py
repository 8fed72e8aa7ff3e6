"""Relation-based distillation (Park et al., 2019, arXiv 1904.05068): a student learns the relations between examples
that a teacher's hidden states have.

    loss = alpha · cross-entropy + (1 − alpha) · (D + angle_weight · A)
    D   Huber(‖sᵢ − sⱼ‖ / mean, ‖tᵢ − tⱼ‖ / mean), mean over the pairs of a group, each over its group's mean distance
    A   Huber(cos ∠sᵢsⱼsₖ, cos ∠tᵢtⱼtₖ), mean over the triples of a group

An example's point is the mean, over its label tokens, of the hidden state that predicts each. The widths of student
and teacher don't matter, and no projection is trained. A group is an example and the others that are drawn for it once,
before training: it is one example to every backend, so no batch, accumulation or worker splits it. Only the example's
own labels are learned; a step costs group_size times what it would without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raytune_llm.data.groups import GROUP_MEMBER
from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import Student, angles, distances, label_terms, name_loss, relation_error
from raytune_llm.models.outputs import Outputs
from raytune_llm.stores.locations import LOCATION

if TYPE_CHECKING:
    from torch import Tensor

    from raytune_llm.methods.base import TrainerInputs


@dataclass(frozen=True, kw_only=True)
class DistillRelation(Student):
    """Learn which examples a teacher finds alike."""

    teacher: str | None = field(metadata=LOCATION)
    """NAME@VERSION of the registry, or a base by its folder or id on the hub, of the student's vocabulary and any
    width; null = the student's own base."""
    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the relations'; 0 ≤ alpha ≤ 1."""
    angle_weight: float
    """Weight of angles, that of distances being 1; ≥ 0 (the paper takes 2)."""
    group_size: int
    """Examples whose relations are compared; ≥ 3, fewer have no angle."""
    layer: int
    """Layer of the student: 0 = embeddings, n = after its n-th block, negative from the end."""
    teacher_layer: int
    """Layer of the teacher, counted alike."""

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(self.angle_weight >= 0, "method.angle_weight", self.angle_weight, "≥ 0")
        require(self.group_size >= 3, "method.group_size", self.group_size, "≥ 3")

    @property
    def needs(self) -> Needs:
        return Needs(
            layers=(self.layer,),
            teacher_layers=(self.teacher_layer,),
            group_size=self.group_size,
            teacher=self.teacher,
            shared_keys=("method.teacher", "method.teacher_layer", "method.group_size"),
            not_packable_reason="it reads hidden states, which the slots of a pack don't give",
        )

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        import torch

        labels = label_terms(outputs["completion"], self.alpha)
        group = [member for name, member in outputs.items() if name == "completion" or name.startswith(GROUP_MEMBER)]
        if len(group) < 3 or any(member.features is None for member in group):
            return name_loss(labels)
        student = torch.stack([_point(member.features, member.mask) for member in group], 1)
        teacher = torch.stack([_point(member.teacher_features, member.mask) for member in group], 1)
        one = student.new_ones(len(student))
        weight = 1 - self.alpha
        relations = {
            "relation_distance": Term(relation_error(distances(student), distances(teacher)), one, weight),
            "angle_distance": Term(relation_error(angles(student), angles(teacher)), one, weight * self.angle_weight),
        }
        return name_loss(labels | relations)

    def extra_parameters(self, inputs: TrainerInputs) -> dict[str, Tensor]:
        from raytune_llm.models.forward import unwrapped
        from raytune_llm.models.hidden_states import attach_reader

        return attach_reader(
            unwrapped(inputs.model), [self.layer], other_width=None, seed=inputs.arguments.get("seed", 0)
        )


def _point(features: Tensor | None, mask: Tensor) -> Tensor:
    """The mean over label tokens of the first layer's states, (B, width), from (B, T, layers, width) and (B, T)."""
    assert features is not None
    return (features[..., 0, :] * mask.unsqueeze(-1)).sum(1) / mask.sum(-1, keepdim=True).clamp(min=1)
