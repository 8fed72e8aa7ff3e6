"""Feature-based distillation (Romero et al., 2015, arXiv 1412.6550): a student's hidden states come near a teacher's.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · distance,      both means over the label tokens
    relative   ‖W s + b − t‖² / ‖t‖²
    cosine     1 − cos(W s + b, t)

s and t are hidden states of student and teacher where each predicts a label token, in pairs of chosen layers whose
distances are averaged. W and b, one map a layer, are trained where the widths differ and are no part of the result;
where they are equal there is none. The teacher runs once, before training. Leaves out attention maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from raytune_llm.errors import require
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import Student, cosine_distance, label_terms, name_loss, relative_error
from raytune_llm.models.outputs import Outputs
from raytune_llm.stores.locations import LOCATION

if TYPE_CHECKING:
    from torch import Tensor

    from raytune_llm.methods.base import TrainerInputs


class Distance(Enum):
    """How far two hidden states are; the module has the formulas."""

    relative = "relative"
    cosine = "cosine"


DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    Distance.relative: relative_error,
    Distance.cosine: cosine_distance,
}


@dataclass(frozen=True, kw_only=True)
class DistillFeature(Student):
    """Learn a teacher's hidden states."""

    teacher: str | None = field(metadata=LOCATION)
    """NAME@VERSION of the registry, or a base by its folder or id on the hub, of the student's vocabulary and any
    width; null = the student's own base."""
    alpha: float
    """Weight of the labels' own cross-entropy, 1 − alpha being the hidden states'; 0 ≤ alpha ≤ 1."""
    distance: Distance
    """relative (squared error over the teacher's square) or cosine."""
    layers: list[int]
    """Layers of the student: 0 = embeddings, n = after its n-th block, negative from the end."""
    teacher_layers: list[int]
    """Layers of the teacher, one for each of `layers`, counted alike."""

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, "method.alpha", self.alpha, "0 ≤ alpha ≤ 1")
        require(len(self.layers) >= 1, "method.layers", self.layers, "at least one layer")
        require(
            len(self.layers) == len(self.teacher_layers),
            "method.teacher_layers",
            self.teacher_layers,
            f"as many layers as method.layers={self.layers}",
        )

    @property
    def needs(self) -> Needs:
        return Needs(
            layers=tuple(self.layers),
            teacher_layers=tuple(self.teacher_layers),
            teacher=self.teacher,
            shared_keys=("method.teacher", "method.teacher_layers"),
            not_packable_reason="it reads hidden states and may train a projection of them, which the slots of a pack "
            "don't have",
        )

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        completion = outputs["completion"]
        labels = label_terms(completion, self.alpha)
        if completion.features is None or completion.teacher_features is None:
            return name_loss(labels)
        apart = DISTANCES[self.distance](completion.features, completion.teacher_features).mean(-1)
        distance = Term((apart * completion.mask).sum(-1), completion.mask.sum(-1), 1 - self.alpha)
        return name_loss(labels | {"feature_distance": distance})

    def extra_parameters(self, inputs: TrainerInputs) -> dict[str, Tensor]:
        from raytune_llm.models.forward import unwrapped
        from raytune_llm.models.hidden_states import attach_reader

        features = inputs.examples[0]["completion"].features
        assert features is not None
        seed = inputs.arguments.get("seed", 0)
        return attach_reader(unwrapped(inputs.model), self.layers, other_width=features.shape[-1], seed=seed)
