"""A method that is trained by its own terms, because TRL has no trainer for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raytune_llm.data.examples import Example
from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerCallback


class LossTermsMethod(ABC):
    """Has the `trainer` of a Method; it gives the terms."""

    @abstractmethod
    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        """As Method.terms."""

    def beside(self, model: PreTrainedModel, examples: Sequence[Example], seed: int) -> dict[str, Tensor]:
        """Make the model give what the terms read; returns the weights, by name, that are trained for it beside the
        model."""
        return {}

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
        """As Method.trainer."""
        from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

        return loss_terms_trainer(
            self.terms,
            model,
            examples,
            indices,
            tokenizer=tokenizer,
            arguments=arguments,
            callbacks=callbacks,
            beside=self.beside(model, examples, arguments.get("seed", 0)),
        )
