"""EMA self-distillation (mean teacher; Tarvainen and Valpola, 2017, arXiv 1703.01780): a student learns to agree with
the exponential moving average of its own weights.

    loss = alpha · cross-entropy on the labels + (1 − alpha) · τ² · D(p, q),      both means over the label tokens
    w̄ ← d · w̄ + (1 − d) · w,  d = min(decay, 1 − 1/(n + 1))      after step n; w̄ starts from the initial weights

q is the student, p the same model with the averaged weights, over its k likeliest tokens and the rest as one more
outcome (methods/distill.py has the same loss with a fixed teacher). A step costs one more forward pass. The result is
the student, not the average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raytune_llm.errors import require
from raytune_llm.methods.base import Needs
from raytune_llm.methods.common.distillation import TopKStudent

if TYPE_CHECKING:
    from transformers import Trainer

    from raytune_llm.methods.base import TrainerInputs


@dataclass(frozen=True, kw_only=True)
class DistillEMA(TopKStudent):
    """Learn from the moving average of the student's own weights, which is the teacher."""

    decay: float
    """Share of the average that is kept at each step; smaller in the first steps, when it would hold the student back;
    0 ≤ decay < 1."""

    needs = Needs(not_packable_reason="its teacher is an average of its own weights, which moves with it")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.decay < 1, "method.decay", self.decay, "0 ≤ decay < 1")

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        from raytune_llm.methods.trainers.ema import ema_trainer

        return ema_trainer(self.terms, inputs, decay=self.decay, top_k=self.teacher_top_k)
