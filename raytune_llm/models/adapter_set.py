"""Adapters that differ in rank and in the modules that they adapt, together in one stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raytune_llm.models.lora_weights import Weights
from raytune_llm.models.stacked_lora import RANK_STEP, AdapterStack


def stack_of(model: nn.Module, adapters: Sequence[Weights]) -> AdapterStack:
    """A stack on the model with these adapters in its slots, in order; at least one."""
    adapted = {name for weights in adapters for name in weights}
    names = [name for name, _ in model.named_modules() if name in adapted]
    largest = max(lora_rank(weights) for weights in adapters)
    stack = AdapterStack(model, names, capacity=len(adapters), max_lora_rank=-(-largest // RANK_STEP) * RANK_STEP)
    for slot, weights in enumerate(adapters):
        stack.write(slot, filled_up(weights, stack.layers), 1.0)
    return stack


def lora_rank(weights: Weights) -> int:
    """The rank of an adapter, which has one in all its modules."""
    return next(iter(weights.values()))[0].shape[0]


def filled_up(weights: Weights, layers: Mapping[str, Any]) -> Weights:
    """An adapter with zeros for those of these linear layers that it doesn't adapt."""
    rank = lora_rank(weights)
    whole = {}
    for name, layer in layers.items():
        empty = (torch.zeros(rank, layer.in_features), torch.zeros(layer.out_features, rank))
        whole[name] = weights.get(name, empty)
    return whole
