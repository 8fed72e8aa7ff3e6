"""Reading prompts into a key-value cache, several in one pass, and long ones in several passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding.step import Adapters, all_logits, forward

PROMPT_TOKENS = 4096
"""Most prompt tokens, padding included, that are read in one pass where no answer waits for it."""

OnLogits = Callable[[int, Tensor], None]
"""Takes the logits, (T, V), that a single prompt's next T tokens gave, and the place of the first one."""


def in_passes(lengths: Sequence[int], most: int = PROMPT_TOKENS) -> list[list[int]]:
    """Places of the prompts that are read in one pass: of similar lengths, at most so many tokens together unless it is
    a single one; the shortest first."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if groups and (len(groups[-1]) + 1) * lengths[place] <= most:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


class PromptReading:
    """Prompts that are read together, padded on the right, each through the adapter of its id."""

    def __init__(
        self,
        model: Any,
        adapters: Adapters | None,
        prompts: Sequence[list[int]],
        ids: Sequence[Any],
        filled: DynamicCache | None = None,
        on_logits: OnLogits | None = None,
    ) -> None:
        """filled: a cache with an equal number of first tokens of each prompt, fewer than it has; on_logits: gets all
        logits of a single prompt."""
        self.cache = DynamicCache() if filled is None else filled
        self.num_read = self.cache.get_seq_length()
        """Tokens of each prompt that the cache has, of shorter ones as many as they have."""
        self._model, self._adapters, self._ids, self._on_logits = model, adapters, ids, on_logits
        self._lengths = [len(prompt) for prompt in prompts]
        width = max(self._lengths)
        padded = [prompt + [0] * (width - len(prompt)) for prompt in prompts]
        self._tokens = torch.tensor(padded, device=model.device)

    def read(self, most: int | None = None) -> Tensor | None:
        """One pass, over at most so many tokens of a single prompt. The logits of the prompts' first tokens, (B, V), in
        the model's dtype, when all is read."""
        start, width = self.num_read, self._tokens.shape[1]
        end = width if most is None or len(self._lengths) > 1 else min(width, start + most)
        device = self._tokens.device
        ids, positions = self._tokens[:, start:end], torch.arange(start, end, device=device)[None]
        route = None if self._adapters is None else self._adapters.route(self._ids)
        # right padding under causal attention: no token can see it, so no mask is needed
        inputs = self._model, self._adapters, route, ids, positions, None, self.cache
        if self._on_logits is not None:
            found = all_logits(*inputs, 0)
            self._on_logits(start, found[0])
            logits = found[:, -1]
        else:
            last = torch.tensor(self._lengths, device=device)[:, None] - 1 - start
            logits = forward(*inputs, last if end == width else 1)
        self.num_read = end
        return logits if end == width else None


def read_prompts(
    model: Any, adapters: Adapters | None, prompts: Sequence[list[int]], ids: Sequence[Any]
) -> tuple[DynamicCache, Tensor]:
    """A cache filled with the prompts, padded on the right, each through the adapter of its id, and the logits of their
    first tokens, (B, V), in the model's dtype."""
    reading = PromptReading(model, adapters, prompts, ids)
    logits = reading.read()
    assert logits is not None
    return reading.cache, logits


def read_token(model: Any) -> DynamicCache:
    """A cache of the model's own shapes, filled with one token."""
    filled = DynamicCache()
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=filled, use_cache=True)
    return filled
