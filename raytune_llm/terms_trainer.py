"""A transformers Trainer whose loss is a method's own terms, for bases and methods that TRL has no trainer for.

    loss of a step = Σ_terms coefficient · Σ sum / Σ weight,    sums over all examples of the step on all workers

The same reduction as packed training's and evaluation's, however a step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from raytune_llm.method import Example, Outputs, Term
from raytune_llm.models.forward import outputs, unsaid, unwrapped

EXAMPLES = "examples"


def terms_trainer(
    terms: Callable[[dict[str, Outputs]], dict[str, Term]],
    model: Any,
    examples: Seq[Example],
    indices: list[int],
    *,
    tokenizer: Any,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A trainer as Method.trainer wants it, by the method's terms alone."""
    return TermsTrainer(
        model=model,
        args=TrainingArguments(**arguments | {"remove_unused_columns": False}),
        train_dataset=[examples[i] for i in indices],
        data_collator=lambda batch: {EXAMPLES: batch},
        processing_class=tokenizer,
        callbacks=callbacks,
        terms=terms,
    )


class TermsTrainer(Trainer):
    """The trainer itself; `terms` are the method's."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, terms: Callable[[dict[str, Outputs]], dict[str, Term]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._terms = terms
        self._weights: dict[str, float] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step; each term's weight over all of them and all workers is noted."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        mine = [example for batch in batches for example in batch[EXAMPLES]]
        if mine:
            is_encoder_decoder = bool(unwrapped(self.model).config.is_encoder_decoder)
            blank = {name: unsaid([example[name] for example in mine], is_encoder_decoder) for name in mine[0]}
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
        said = {name: outputs(model, [example[name] for example in batch], pad_id=pad_id) for name in batch[0]}
        parts = [
            term.sum.sum() * (term.coefficient / self._weights[name] if self._weights[name] else 0.0)
            for name, term in self._terms(said).items()
            if term.coefficient
        ]
        return torch.stack(parts).sum() * self.accelerator.num_processes

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate needs tensors by the model's own names."""
        return 0
