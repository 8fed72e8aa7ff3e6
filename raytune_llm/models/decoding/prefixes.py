"""Beginnings of prompts that were read before, such as a system prompt: their keys and values, to begin the next prompt
with.

A beginning is a chain of blocks of BLOCK_TOKENS tokens; prompts that begin alike share blocks. Blocks take what the
budget leaves unused, up to a share of it, and give way to answers; the least recently used ones first. One prompt
keeps at most half of that, so that a long one leaves room for those that others begin with.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding.kv_cache import CacheBudget

BLOCK_TOKENS = 64
PROMPT_SHARE = 0.5
"""Most of the room for beginnings that one prompt takes."""


@dataclass(frozen=True, eq=False)
class Block:
    """The keys and values, (heads, BLOCK_TOKENS, size), of each layer."""

    number: int
    owner: Hashable
    layers: tuple[tuple[Tensor, Tensor], ...]
    num_bytes: int


class PrefixCache:
    """Of one model with any adapters, whose names are the owners of prompts. Not thread-safe."""

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._blocks: OrderedDict[tuple[int, Hashable, tuple[int, ...]], Block] = OrderedDict()
        """By the number of the block before (0 for none), owner and tokens; the least recently used first. A block is
        never younger than those before it."""
        self._numbers = itertools.count(1)
        self.held_bytes = 0
        budget.lend(self)

    def find(self, owner: Hashable, prompt: Sequence[int]) -> list[Block]:
        """The blocks that the prompt begins with; at least its last token is left to read."""
        found: list[Block] = []
        keys = []
        while (len(found) + 1) * BLOCK_TOKENS < len(prompt):
            key = self._key(owner, prompt, found)
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
            keys.append(key)
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        return found

    def keep(self, owner: Hashable, prompt: Sequence[int], cache: DynamicCache, row: int, num_read: int) -> None:
        """Copy the blocks of a row's first tokens, as far as they are read and there is room."""
        prompt = prompt[:num_read]
        found = self.find(owner, [*prompt, -1])
        for start in range(len(found) * BLOCK_TOKENS, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            num_bytes, room = _block_bytes(cache), self._budget.room_to_lend(self)
            if (len(found) + 1) * num_bytes > room * PROMPT_SHARE:
                break
            self.shrink(room - num_bytes)
            block = _copied(next(self._numbers), owner, cache, row, start)
            self._blocks[self._key(owner, prompt, found)] = block
            self.held_bytes += block.num_bytes
            found.append(block)
        self.find(owner, [*prompt, -1])

    def shrink(self, most_bytes: int) -> None:
        """Drop blocks until they take at most so many bytes."""
        while self._blocks and self.held_bytes > max(0, most_bytes):
            self.held_bytes -= self._blocks.popitem(last=False)[1].num_bytes

    def forget(self, owner: Hashable) -> None:
        """Drop all blocks of prompts through this adapter."""
        for key in [key for key, block in self._blocks.items() if block.owner == owner]:
            self.held_bytes -= self._blocks.pop(key).num_bytes

    def _key(
        self, owner: Hashable, prompt: Sequence[int], before: Sequence[Block]
    ) -> tuple[int, Hashable, tuple[int, ...]]:
        start = len(before) * BLOCK_TOKENS
        return before[-1].number if before else 0, owner, tuple(prompt[start : start + BLOCK_TOKENS])


def cache_of(chains: Sequence[Sequence[Block]]) -> DynamicCache:
    """A cache of rows that begin with these blocks, as many each."""
    cache = DynamicCache()
    for layer in range(len(chains[0][0].layers)):
        keys, values = (
            torch.stack([torch.cat([block.layers[layer][part] for block in chain], 1) for chain in chains])
            for part in (0, 1)
        )
        cache.update(keys, values, layer)
    return cache


def _block_bytes(cache: DynamicCache) -> int:
    return sum(made[0, :, :BLOCK_TOKENS].nbytes for layer in cache.layers for made in (layer.keys, layer.values))


def _copied(number: int, owner: Hashable, cache: DynamicCache, row: int, start: int) -> Block:
    end = start + BLOCK_TOKENS
    layers = tuple(
        (layer.keys[row, :, start:end].clone(), layer.values[row, :, start:end].clone()) for layer in cache.layers
    )
    return Block(number, owner, layers, sum(made.nbytes for pair in layers for made in pair))
