"""Model outputs per label token, as a method's loss terms read them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on one named sequence of each example."""

    logprobs: Tensor
    """log p(label) of each label token, nats, (B, T); 0 where mask is 0."""
    mask: Tensor
    """1 where a label counts, (B, T), same dtype as logprobs; 0 everywhere from a reward model."""
    correct: Tensor
    """1 where the label is the model's first choice, (B, T), 0 elsewhere."""
    score: Tensor | None = None
    """A reward model's scalar for the sequence, read at its last token, (B,)."""
    reference: Tensor | None = None
    """Sequence.reference, nats, (B,)."""
    top_k_logprobs: Tensor | None = None
    """The model's log p of the teacher's k likeliest tokens in place of each label token, nats, (B, T, k)."""
    teacher_logprobs: Tensor | None = None
    """The teacher's, and that of all other tokens together, (B, T, k + 1)."""
    features: Tensor | None = None
    """The model's hidden states where it predicts each label token, (B, T, layers, width): its own width, or the
    teacher's where the model carries a projection to it (models/hidden_states.py)."""
    teacher_features: Tensor | None = None
    """The teacher's, (B, T, layers, its width)."""

    def rows(self, part: slice) -> Outputs:
        """The outputs of some of the examples."""
        whole: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {name: None if value is None else value[part] for name, value in whole.items()}
        return Outputs(**cut)
