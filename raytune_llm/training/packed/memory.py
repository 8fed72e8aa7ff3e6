"""How many bytes a slot and a token take, and what fits into a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raytune_llm.data.examples import TokenSequence
from raytune_llm.errors import InputError
from raytune_llm.models.reward_head import head_sizes
from raytune_llm.training.packed.adapted_base import AdaptedBase
from raytune_llm.training.packed.batches import TokenTable
from raytune_llm.training.packed.checkpointing import num_blocks

SHARE_FOR_ACTIVATIONS = 0.8
"""Of what the slots leave free; the rest is for logits, workspaces and the allocator's holes."""
PROBE_TOKENS = 64


def slot_bytes(model: torch.nn.Module, names: Sequence[str], max_lora_rank: int) -> int:
    """Weights, gradient and two moments of one slot, and what passes compute with."""
    layers: list[Any] = [model.get_submodule(name) for name in names]
    scalars = max_lora_rank * sum(layer.in_features + layer.out_features for layer in layers)
    scalars += sum(head_sizes(model).values())
    itemsize = layers[0].weight.element_size()
    return scalars * (4 * max(itemsize, 4) + itemsize)


def choose_capacity(
    model: torch.nn.Module, names: Sequence[str], max_lora_rank: int, *, wanted: int, budget_bytes: int
) -> int:
    """Slots for `wanted` trials that take at most half of the budget. Raises InputError when not even one fits."""
    each = slot_bytes(model, names, max_lora_rank)
    fitting = budget_bytes // 2 // each
    if fitting < 1:
        raise InputError(
            f"tuning.adapter_size={max_lora_rank}: a trial takes {each:,} bytes of the pack, and {budget_bytes:,} "
            "bytes must hold two; lower the largest size, or use sweep/backend=ray_train"
        )
    return min(wanted, fitting)


def token_bytes(base: AdaptedBase) -> float:
    """Bytes per token at the most that a pass holds for the backward pass, measured on a short sequence through one
    slot; with checkpointing, of the blocks' inputs and of the one block that is being recomputed."""
    if not base.checkpointing:
        return _kept_bytes(base)
    base.checkpointing = False
    whole = _kept_bytes(base)
    base.checkpointing = True
    return _kept_bytes(base) + whole / num_blocks(base.model)


def _kept_bytes(base: AdaptedBase) -> float:
    """Bytes per token that are kept between the forward and the backward pass."""
    ids = [(7919 * i + 1) % base.head.vocabulary for i in range(PROBE_TOKENS)]
    table = TokenTable(
        [{"probe": TokenSequence(ids, ids)}], is_encoder_decoder=bool(base.model.config.is_encoder_decoder)
    )
    own = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    own.add(base.stack.table.untyped_storage().data_ptr())
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        base.stack.routed(base.stack.span(0, 1)),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        outputs = base.head.outputs(table.batch("probe", np.zeros(1, dtype=np.int64), base.stack.device))
        del outputs
    return sum(kept.values()) / int(table.lengths[0])


def fit_tokens(base: AdaptedBase, longest_pass: int, *, budget_bytes: int) -> int:
    """Padded tokens of one pass that fit into what the pack's slots leave of the budget, which is all that was free
    before the pack was made.

    Switches the pack's checkpointing on when the longest pass that can't be split, in tokens, would not fit without it.
    """
    room = (budget_bytes - base.num_bytes - base.gathered_bytes) * SHARE_FOR_ACTIVATIONS
    tokens = int(room / token_bytes(base))
    if tokens < longest_pass and not base.checkpointing:
        base.checkpointing = True
        tokens = int(room / token_bytes(base))
    return max(tokens, longest_pass)
