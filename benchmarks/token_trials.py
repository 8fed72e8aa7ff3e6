"""Trials on random tokens, as the benchmarks of packed steps train them."""

from __future__ import annotations

import dataclasses
from typing import Any

from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.config import Schedule
from raytune_llm.training.packed.hyperparameters import Hyperparameters


def terms(outputs: dict[str, Outputs]) -> dict[str, Term]:
    """Next-token loss."""
    completion = outputs["completion"]
    return {"loss": Term(-completion.logprobs.sum(-1), completion.mask.sum(-1))}


def trial(index: int, *, lora_rank: int, batch_size: int, **changes: Any) -> Hyperparameters:
    """A trial without warm-up, decay and dropout; `changes`: other values of its fields."""
    plain = Hyperparameters(
        trial_id=str(index),
        lora_rank=lora_rank,
        alpha=16.0,
        rslora=False,
        dropout=0.0,
        learning_rate=1e-3,
        schedule=Schedule.constant,
        warmup_steps=0,
        num_steps=None,
        weight_decay=0.0,
        max_grad_norm=1.0,
        batch_size=batch_size,
        micro_batch_size=None,
        seed=index,
    )
    return dataclasses.replace(plain, **changes)
