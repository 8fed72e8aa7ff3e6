"""A transformers Trainer whose loss is a method's own terms, for bases and methods that TRL doesn't train.

    loss of a step = Σ_terms coefficient · Σ sum / Σ weight,    sums over all examples of the step on all workers

The same reduction as packed training's and evaluation's, however a step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

from raytune_llm.data.examples import Example
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.evaluation.terms import Term
from raytune_llm.methods.base import TrainerConfig, TrainerInputs
from raytune_llm.models.forward import blank_outputs, outputs, unwrapped
from raytune_llm.models.outputs import Outputs

Terms = Callable[[dict[str, Outputs]], dict[str, Term]]
EXAMPLES = "examples"
EXTRA_PARAMETERS = "extra_parameters.safetensors"
"""Of a checkpoint: the trainer's parameters that are no part of the tuned model."""


def terms_config() -> TrainerConfig:
    """The config of that trainer."""
    return TrainerConfig(kind=TrainingArguments, own=frozenset({"remove_unused_columns"}))


def loss_terms_trainer(
    terms: Terms,
    inputs: TrainerInputs,
    *,
    extra_parameters: dict[str, Tensor] | None = None,
    kind: type[LossTermsTrainer] | None = None,
) -> LossTermsTrainer:
    """The trainer of a method's terms.

    extra_parameters: tensors that a checkpoint must hold although they are no part of what is stored as the tuned
        model.
    kind: a subclass of LossTermsTrainer.
    """
    return (kind or LossTermsTrainer)(
        model=inputs.model,
        args=terms_config().build(inputs.arguments, remove_unused_columns=False),
        train_dataset=ExampleTable.of(inputs.examples).select(inputs.indices),
        data_collator=lambda batch: {EXAMPLES: batch},
        processing_class=inputs.tokenizer,
        callbacks=inputs.callbacks,
        terms=terms,
        extra_parameters=extra_parameters or {},
    )


class LossTermsTrainer(Trainer):
    """Trains by `terms`, the method's; its checkpoints hold `extra_parameters` in addition to the model."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, terms: Terms, extra_parameters: dict[str, Tensor], **options: Any) -> None:
        super().__init__(*args, **options)
        self._terms, self.extra_parameters = terms, extra_parameters
        self._weights: dict[str, float] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step; sums each term's weight over all of them and all workers."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        mine = [example for batch in batches for example in batch[EXAMPLES]]
        if mine:
            is_encoder_decoder = bool(unwrapped(self.model).config.is_encoder_decoder)
            blank = {name: blank_outputs([example[name] for example in mine], is_encoder_decoder) for name in mine[0]}
            weights = {name: term.weight.sum().to(device) for name, term in self._terms(blank).items()}
            self._weights = {name: float(self.accelerator.reduce(weight, "sum")) for name, weight in weights.items()}
        return batches, count

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A micro-batch's part of the step's loss. Gradients are averaged over workers, so it is taken that often."""
        batch: list[Example] = inputs[EXAMPLES]
        pad_id = self.processing_class.pad_token_id
        found = {name: outputs(model, [example[name] for example in batch], pad_id=pad_id) for name in batch[0]}
        parts = [
            term.sum.sum() * (term.coefficient / self._weights[name] if self._weights[name] else 0.0)
            for name, term in self._terms(found).items()
            if term.coefficient
        ]
        return torch.stack(parts).sum() * self.accelerator.num_processes

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.extra_parameters and self.args.should_save:
            kept = {name: tensor.detach().contiguous() for name, tensor in self.extra_parameters.items()}
            save_file(kept, Path(output_dir or self.args.output_dir, EXTRA_PARAMETERS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.extra_parameters:
            for name, tensor in load_file(Path(resume_from_checkpoint, EXTRA_PARAMETERS)).items():
                self.extra_parameters[name].data.copy_(tensor)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate needs tensors by the model's own names."""
        return 0
