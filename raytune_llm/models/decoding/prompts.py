"""Reading prompts into a key-value cache, several in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding.step import Adapters, forward

PROMPT_TOKENS = 4096
"""Most prompt tokens, padding included, that are read in one pass; running answers wait for it."""


def in_passes(lengths: Sequence[int]) -> list[list[int]]:
    """Places of the prompts that are read in one pass: of similar lengths, within the bound; the shortest first."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if groups and (len(groups[-1]) + 1) * lengths[place] <= PROMPT_TOKENS:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def read_prompts(
    model: Any, adapters: Adapters | None, prompts: Sequence[list[int]], ids: Sequence[Any]
) -> tuple[DynamicCache, Tensor]:
    """A cache filled with the prompts, padded on the right, each through the adapter of its id, and the logits of their
    first tokens, (B, V), in the model's dtype."""
    lengths, device = [len(prompt) for prompt in prompts], model.device
    width = max(lengths)
    tokens = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)
    positions = torch.arange(width, device=device)[None]
    last = torch.tensor(lengths, device=device)[:, None] - 1
    filled = DynamicCache()
    route = None if adapters is None else adapters.route(ids)
    # right padding under causal attention: no token can see it, so no mask is needed
    return filled, forward(model, adapters, route, tokens, positions, None, filled, last)


def read_token(model: Any) -> DynamicCache:
    """A cache of the model's own shapes, filled with one token."""
    filled = DynamicCache()
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=filled, use_cache=True)
    return filled
