"""What a tuning method is: the contract between methods/, the training backends and evaluation.

An Example is one record, encoded as named token sequences: {"completion": …} for sft, {"chosen": …, "rejected": …}
for preferences. A backend runs every sequence through the model once and hands the outputs, by the same names, to
`Method.terms`, which says for each example what it costs. The backend owns reduction: it divides each term's sum by
its weight over the whole optimizer step of its own trial, so that accumulation, padding and packing change nothing.

Shape letters: B examples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from raytune_llm.data.records import Record
    from raytune_llm.data.tokens import Tokens

IGNORED = -100
"""Label of a token that carries no loss (the convention of torch.nn.functional.cross_entropy)."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One token sequence. Causal bases: labels are aligned with input_ids (IGNORED where no loss is due) and are
    shifted by the model. Encoder-decoder bases: input_ids feed the encoder and labels are the decoder's targets, of
    their own length."""

    input_ids: list[int]
    labels: list[int]


Example = dict[str, Sequence]


@dataclass(frozen=True)
class Outputs:
    """What a model said of one named sequence of each example."""

    logprobs: Tensor
    """log p(label) of each label token, nats, (B, T); 0 where mask is 0."""
    mask: Tensor
    """1 where a label counts, (B, T), same dtype as logprobs."""
    correct: Tensor
    """1 where the label is the model's first choice, (B, T), 0 elsewhere."""


@dataclass(frozen=True)
class Term:
    """One part of the loss: coefficient · Σ sum / Σ weight. With coefficient 0 it is a metric only."""

    sum: Tensor
    """(B,)"""
    weight: Tensor
    """(B,)"""
    coefficient: float = 1.0


class Method(Protocol):
    """A file in methods/ with a dataclass of this shape is a method; its YAML names it. Nothing else is edited."""

    @property
    def records(self) -> tuple[type, ...]:
        """The record kinds it takes (data/records.py)."""
        ...

    @property
    def metric(self) -> str:
        """The eval metric that stops, ranks and selects trials; lower is better when it ends in 'loss'."""
        ...

    def encode(self, record: Record, tokens: Tokens) -> Example | None:
        """The record's token sequences, or None when truncation left nothing to learn from."""
        ...

    def terms(self, outputs: dict[str, Outputs]) -> dict[str, Term]:
        """Named terms; the name is the metric's after 'train/' or 'eval/'."""
        ...

    def trainer(
        self,
        model: PreTrainedModel,
        examples: Seq[Example],
        indices: list[int],
        *,
        tokenizer: Any,
        arguments: dict[str, Any],
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        """A TRL or transformers trainer for this method. `indices` are the examples in the order of training, as many
        as the run needs; `arguments` are TrainingArguments that take them sequentially; the model is already
        adapted."""
        ...


def lower_is_better(metric: str) -> bool:
    """Losses, perplexities and divergences fall; every other metric rises."""
    return metric.rsplit("/", 1)[-1] in {"loss", "perplexity", "kl"}
