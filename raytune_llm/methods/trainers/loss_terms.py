"""A transformers Trainer whose loss is a method's own terms, for bases and methods that TRL has no trainer for.

    loss of a step = Σ_terms coefficient · Σ sum / Σ weight,    sums over all examples of the step on all workers

The same reduction as packed training's and evaluation's, however a step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from raytune_llm.data.examples import Example
from raytune_llm.evaluation.terms import Term
from raytune_llm.models.forward import blank_outputs, outputs, unwrapped
from raytune_llm.models.outputs import Outputs

Terms = Callable[[dict[str, Outputs]], dict[str, Term]]
EXAMPLES = "examples"
BESIDE = "beside.safetensors"
"""Of a checkpoint: what the trainer keeps beside the model's own weights."""


def loss_terms_trainer(
    terms: Terms,
    model: Any,
    examples: Sequence[Example],
    indices: list[int],
    *,
    tokenizer: Any,
    arguments: dict[str, Any],
    callbacks: list[TrainerCallback],
    beside: dict[str, Tensor] | None = None,
    kind: type[LossTermsTrainer] | None = None,
) -> Trainer:
    """A trainer as Method.trainer wants it, by the method's terms alone.

    beside: tensors that a checkpoint must hold although they are no part of what is stored as the tuned model.
    kind: a subclass of LossTermsTrainer.
    """
    return (kind or LossTermsTrainer)(
        model=model,
        args=TrainingArguments(**arguments | {"remove_unused_columns": False}),
        train_dataset=[examples[i] for i in indices],
        data_collator=lambda batch: {EXAMPLES: batch},
        processing_class=tokenizer,
        callbacks=callbacks,
        terms=terms,
        beside=beside or {},
    )


class LossTermsTrainer(Trainer):
    """The trainer itself; `terms` are the method's, `beside` what its checkpoints hold more than the model."""

    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, terms: Terms, beside: dict[str, Tensor], **options: Any) -> None:
        super().__init__(*args, **options)
        self._terms, self.beside = terms, beside
        self._weights: dict[str, float] = {}

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step; each term's weight over all of them and all workers is noted."""
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
        said = {name: outputs(model, [example[name] for example in batch], pad_id=pad_id) for name in batch[0]}
        parts = [
            term.sum.sum() * (term.coefficient / self._weights[name] if self._weights[name] else 0.0)
            for name, term in self._terms(said).items()
            if term.coefficient
        ]
        return torch.stack(parts).sum() * self.accelerator.num_processes

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.beside and self.args.should_save:
            kept = {name: tensor.detach().contiguous() for name, tensor in self.beside.items()}
            save_file(kept, Path(output_dir or self.args.output_dir, BESIDE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.beside:
            for name, tensor in load_file(Path(resume_from_checkpoint, BESIDE)).items():
                self.beside[name].data.copy_(tensor)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers' estimate needs tensors by the model's own names."""
        return 0
