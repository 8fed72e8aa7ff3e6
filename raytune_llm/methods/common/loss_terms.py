"""A method that is trained by its own terms, because TRL has no trainer for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from raytune_llm.methods.base import TrainerConfig, TrainerInputs


class LossTermsMethod(ABC):
    """Has the `trainer` of a Method; a subclass gives the terms."""

    @abstractmethod
    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        """As Method.terms."""

    def extra_parameters(self, inputs: TrainerInputs) -> dict[str, Tensor]:
        """Make the model give what the terms read; returns the weights, by name, that are trained for it in addition to
        the model."""
        return {}

    def trainer(self, inputs: TrainerInputs) -> Trainer:
        """As Method.trainer."""
        from raytune_llm.methods.trainers.loss_terms import loss_terms_trainer

        return loss_terms_trainer(self.terms, inputs, extra_parameters=self.extra_parameters(inputs))

    def trainer_config(self, *, is_encoder_decoder: bool) -> TrainerConfig:
        """As Method.trainer_config."""
        from raytune_llm.methods.trainers.loss_terms import terms_config

        return terms_config()
