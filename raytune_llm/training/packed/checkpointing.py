"""Activation checkpointing of a packed base: blocks keep their inputs only and are recomputed in the backward pass.

transformers checkpoints blocks that are in training mode; the base runs in eval mode, so only the blocks' own flag is
set, not their children's. Recomputing must take the route, and draw the dropout, of the first run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from raytune_llm.compat import set_checkpoint_function
from raytune_llm.errors import InputError
from raytune_llm.models.adapter_route import Route
from raytune_llm.models.stacked_lora import AdapterStack


def set_checkpointing(model: PreTrainedModel, stack: AdapterStack, enabled: bool) -> None:
    """Switch it on or off. Raises InputError when the model has no blocks to checkpoint."""
    blocks = _blocks(model)
    if enabled and not blocks:
        raise InputError(
            f"{type(model).__name__} has no blocks that can be checkpointed; set scaling.gradient_checkpointing=false"
        )

    def run(function: Callable[..., Any], *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*args)
        route = stack.route

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _again(stack, route)

        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    for block in blocks:
        block.gradient_checkpointing = enabled
        block.training = enabled
        set_checkpoint_function(block, run)


def num_blocks(model: PreTrainedModel) -> int:
    """Blocks that are recomputed one by one."""
    return len(_blocks(model))


def _blocks(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def _again(stack: AdapterStack, route: Route | None) -> Iterator[None]:
    noise = None if route is None else route.noise
    with stack.routed(route), nullcontext() if noise is None else noise.replay():
        yield
