"""A trainer of loss terms whose teacher is an exponential moving average (EMA) of the weights that it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from raytune_llm.methods.base import TrainerInputs
from raytune_llm.methods.trainers.loss_terms import EXAMPLES, LossTermsTrainer, Terms, loss_terms_trainer
from raytune_llm.models.frozen import with_teacher_top_k


def ema_trainer(terms: Terms, inputs: TrainerInputs, *, decay: float, top_k: int) -> Trainer:
    """As loss_terms_trainer, each example with the average's top_k likeliest tokens in place of each label.

    decay: of the average at each step; it starts from the model's present weights.
    """
    average = {name: weight.detach().clone() for name, weight in trained(inputs.model).items()}
    inputs = replace(inputs, callbacks=[EMACallback(average, decay), *inputs.callbacks])
    found = loss_terms_trainer(terms, inputs, extra_parameters=average, kind=EMATrainer)
    assert isinstance(found, EMATrainer)
    found.top_k = top_k
    return found


class EMATrainer(LossTermsTrainer):
    """The trainer itself; `extra_parameters` are the average."""

    top_k: int

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with holding(self.model, self.extra_parameters):
            examples = with_teacher_top_k(
                model,
                inputs[EXAMPLES],
                top_k=self.top_k,
                vocabulary=len(self.processing_class),
                pad_id=self.processing_class.pad_token_id,
                batch_size=len(inputs[EXAMPLES]),
            )
        return super().compute_loss(model, {EXAMPLES: examples}, return_outputs, num_items_in_batch)


class EMACallback(TrainerCallback):
    """Moves the average after each step, at first faster: of step n at least 1 / (n + 1) is the model's."""

    def __init__(self, average: dict[str, Tensor], decay: float) -> None:
        self.average, self.decay = average, decay

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        decay = min(self.decay, 1 - 1 / (state.global_step + 1))
        with torch.no_grad():
            for name, weight in trained(model).items():
                mean = self.average[name]
                self.average[name] = mean.to(weight.device).lerp(weight.detach(), 1 - decay)


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def holding(model: Any, weights: dict[str, Tensor]) -> Iterator[None]:
    """The model with these values in its parameters; its own are restored afterwards."""
    parameters = trained(model)
    own = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = weights[name].to(parameter.device)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
