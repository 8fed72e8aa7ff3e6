"""The key-value cache of rows that decode together: token t of a row lies in column t of its row.

A step writes each row's own next column. What lies beyond a row's tokens is finite and masked. Buffers are as large as
the rows need, in powers of two so that they seldom move, within a budget, and smaller again when long rows have left.
Left out: pages. Beginnings that prompts share are copied (prefixes.py).

Shape letters: R rows of the buffers, H key-value heads, C columns, D head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from raytune_llm.models.memory import free_bytes

COLUMN_STEP = 128
"""Columns are allocated in multiples of this."""
SHRINKING = 4
"""Buffers shrink when they are at least this part of the budget, and as many times what their rows need."""
LENT_SHARE = 0.25
"""Most of a budget that beginnings of prompts take (prefixes.py)."""
SHARES = {"cuda": 0.5, "cpu": 0.25}
"""Of the memory that is free once the base is loaded; the rest is for adapters, tuned models and reading prompts."""


class Borrower(Protocol):
    """What takes memory that nothing else needs, and gives it back at once."""

    held_bytes: int

    def shrink(self, most_bytes: int) -> None:
        """Hold at most so many bytes."""
        ...


class CacheBudget:
    """The bytes that all caches of an engine may take together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._caches: weakref.WeakSet[KVCache] = weakref.WeakSet()
        self._borrowers: weakref.WeakSet[Borrower] = weakref.WeakSet()

    def lend(self, borrower: Borrower) -> None:
        """Let it take what is left, up to LENT_SHARE."""
        self._borrowers.add(borrower)

    def room_to_lend(self, borrower: Borrower) -> int:
        """What it may take in all at present."""
        unclaimed = self.limit_bytes - sum(cache.claimed_bytes for cache in self._caches)
        others = sum(other.held_bytes for other in self._borrowers if other is not borrower)
        return max(0, min(unclaimed, int(self.limit_bytes * LENT_SHARE)) - others)

    def collect(self) -> None:
        """Have borrowers give back what the caches have claimed."""
        for borrower in self._borrowers:
            borrower.shrink(self.room_to_lend(borrower))

    def share(self, cache: KVCache) -> None:
        """Let a cache take its part."""
        self._caches.add(cache)

    def left(self, cache: KVCache) -> int:
        """What a cache may take in all, as long as the others' answers run."""
        return self.limit_bytes - sum(other.claimed_bytes for other in self._caches if other is not cache)

    def allows(self, cache: KVCache, needed_bytes: int) -> bool:
        """Whether a cache may take so many bytes in all; frees idle ones for it."""
        if needed_bytes > self.left(cache):
            for other in self._caches:
                if other is not cache and not other.needs and not other.promised:
                    other.clear()
        return needed_bytes <= self.left(cache)


def default_budget(device: torch.device) -> int:
    """Bytes of caches where no number is configured."""
    return int(free_bytes(device) * SHARES[device.type])


class KVCache:
    """Rows 0 to num_rows - 1 are in use. Where memory runs out the rows stay as they were."""

    def __init__(self, like: DynamicCache, budget: CacheBudget, *, max_rows: int) -> None:
        """like: what the model fills in a pass over one token."""
        self.max_rows, self._budget = max_rows, budget
        self._layers = [KVCacheLayer(layer) for layer in like.layers]
        self.cache: Any = Cache(layers=self._layers)
        """The past_key_values that a transformers model takes."""
        self.token_bytes = sum(layer.token_bytes for layer in self._layers)
        """Bytes of one column of one row, of all layers."""
        self.rows, self.columns = 0, 0
        """Size of the buffers."""
        self.version = 0
        """Grows when buffers move."""
        self.lengths: list[int] = []
        """Tokens of each row."""
        self.needs: list[int] = []
        """Most tokens that each row will have."""
        self.promised: list[int] = []
        """The same of rows that are about to join."""
        self._touched: list[int] = []
        """Columns of each row of the buffers that may not be 0."""
        self._first: dict[tuple[int, int], Tensor] = {}
        budget.share(self)

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def held_bytes(self) -> int:
        return self.rows * self.columns * self.token_bytes

    @property
    def claimed_bytes(self) -> int:
        """What it holds, or will need for its rows."""
        return max(self.held_bytes, self.needed_bytes([*self.needs, *self.promised]))

    def needed_bytes(self, needs: Sequence[int]) -> int:
        """Bytes of rows that will have at most so many tokens each."""
        return len(needs) * _up(max(needs, default=0)) * self.token_bytes

    def has_room(self, need: int) -> bool:
        """Whether one more row may join, of at most so many tokens."""
        return self._budget.allows(self, self.needed_bytes([*self.needs, *self.promised, need]))

    @property
    def longest(self) -> int:
        """Tokens of the longest row that the budget allows."""
        return self._budget.limit_bytes // self.token_bytes // COLUMN_STEP * COLUMN_STEP

    def wide_rows(self, count: int) -> int:
        """Rows of a pass that is filled up to a power of two; just those in use where the budget has no room."""
        wide = min(power_of_two(count), self.max_rows)
        return wide if self._fits((wide, _up(max(self.needs, default=0)))) else count

    def insert(self, filled: DynamicCache, lengths: Sequence[int], needs: Sequence[int]) -> None:
        """Append rows whose first tokens were read into the cache `filled`, whatever follows them there."""
        first, last = self.num_rows, self.num_rows + len(lengths)
        width = max(lengths)
        self.reserve(last, width)
        touched = max(self._touched[first:last])
        for layer, read in zip(self._layers, filled.layers, strict=True):
            layer.fill(slice(first, last), read, width, touched)
        self.lengths += lengths
        self.needs += needs
        self._touched[first:last] = [width] * len(lengths)

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = self.num_rows - 1
        if row != last:
            width = max(self._touched[row], self._touched[last])
            for layer in self._layers:
                layer.copy_row(last, row, width)
            self.lengths[row], self.needs[row] = self.lengths[last], self.needs[last]
            self._touched[row] = width
        self.lengths.pop()
        self.needs.pop()

    def shrink(self) -> None:
        """Give back the memory that long rows needed and the present ones don't."""
        size = self._size(max(1, self.num_rows), max(self.lengths, default=0))
        is_much = self.held_bytes * SHRINKING >= self._budget.limit_bytes
        if is_much and self.held_bytes >= SHRINKING * size[0] * size[1] * self.token_bytes:
            with suppress(torch.OutOfMemoryError):  # moving needs memory itself
                self._resize(*size)

    def clear(self) -> None:
        """Remove all rows and free the buffers."""
        self.lengths.clear()
        self.needs.clear()
        self._resize(0, 0)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make the buffers large enough for so many rows of so many tokens."""
        if rows <= self.rows and tokens <= self.columns:
            return
        wanted = self._size(rows, tokens)
        both = max(wanted[0], self.rows), max(wanted[1], self.columns)
        self._resize(*(both if self._fits(both) else wanted))

    def begin(self, positions: Tensor, columns: int, column: int | None = None) -> None:
        """Prepare a pass that writes column positions[i] of row i and reads so many columns. positions: (rows, 1).
        `column`: that of all rows, where it is known; then it is written faster."""
        rows = len(positions)
        places: dict[tuple[int, int], Tensor] = {}
        if column is None:
            places = {shape: (first[:rows] + positions).flatten() for shape, first in self._first.items()}
        for layer in self._layers:
            layer.place, layer.column, layer.seen = places.get(layer.shape), column, (rows, columns)

    def advance(self) -> None:
        """Each row has one more token."""
        for row, length in enumerate(self.lengths):
            self.lengths[row] = length + 1
            self._touched[row] = max(self._touched[row], length + 1)

    def _fits(self, size: tuple[int, int]) -> bool:
        return size[0] * size[1] * self.token_bytes <= self._budget.left(self)

    def _size(self, rows: int, tokens: int) -> tuple[int, int]:
        """Rows and columns of buffers for so many rows of so many tokens: powers of two if the budget allows."""
        wide = min(power_of_two(rows), self.max_rows), power_of_two(max(tokens, COLUMN_STEP))
        return wide if self._fits(wide) else (rows, _up(tokens))

    def _resize(self, rows: int, columns: int) -> None:
        self.version += 1
        kept = self.num_rows, max(self.lengths, default=0)
        touched = columns
        try:
            for layer in self._layers:
                layer.resize(rows, columns, kept)
            touched = max(1, kept[1])
        finally:
            # a layer that found no memory keeps its size; what all of them have may be used
            self.rows = min(layer.keys.shape[0] for layer in self._layers)
            self.columns = min(layer.keys.shape[2] for layer in self._layers)
            self._touched = [min(touched, self.columns)] * self.rows
            self._first = {}
            for layer in self._layers:
                self._first.setdefault(layer.shape, layer.starts(self.rows))


class KVCacheLayer(CacheLayerMixin):
    """One layer's buffers, (R, H, C, D), as transformers' models write and read them."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, like: Any) -> None:
        """like: a filled layer of the same shape and dtype."""
        super().__init__()
        self.token_bytes: int = sum(
            made.shape[1] * made.shape[3] * made.element_size() for made in (like.keys, like.values)
        )
        self.keys, self.values = like.keys[:0, :, :0].clone(), like.values[:0, :, :0].clone()
        self.place: Tensor | None = None
        """Where the next pass writes, (rows · H,) in the buffers as (R · H · C, D); None when it is one column."""
        self.column: int | None = None
        self.seen = (0, 0)
        """Rows and columns that it reads."""
        self.is_initialized = True

    @property
    def shape(self) -> tuple[int, int]:
        """H and C."""
        return self.keys.shape[1], self.keys.shape[2]

    def starts(self, rows: int) -> Tensor:
        """Where each head's columns of each row begin, (rows, H)."""
        heads, columns = self.shape
        return (torch.arange(rows * heads, device=self.keys.device) * columns).view(rows, heads)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are allocated by `resize`."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the next column of each row, (rows, H, 1, D); return what the pass reads, (rows, H, columns, D)."""
        rows, columns = self.seen
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            if self.place is None:
                buffer[:rows, :, self.column] = states[:, :, 0]
            else:
                buffer.view(-1, buffer.shape[3]).index_copy_(0, self.place, states.reshape(-1, buffer.shape[3]))
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]

    def fill(self, rows: slice, read: Any, width: int, touched: int) -> None:
        """Put what was read of prompts into rows, of whose columns so many were touched by earlier ones."""
        for buffer, states in ((self.keys, read.keys), (self.values, read.values)):
            buffer[rows, :, :width] = states[:, :, :width]
            # not finite there, an earlier row would spoil this one through the mask
            buffer[rows, :, width:touched] = 0

    def copy_row(self, source: int, into: int, width: int) -> None:
        for buffer in (self.keys, self.values):
            buffer[into, :, :width] = buffer[source, :, :width]

    def resize(self, rows: int, columns: int, kept: tuple[int, int]) -> None:
        """Reallocate for so many rows and columns, with the first rows' first columns kept and 0 elsewhere."""
        made = [_resized(buffer, rows, columns, kept) for buffer in (self.keys, self.values)]
        self.keys, self.values = made

    def get_seq_length(self) -> int:
        return self.seen[1] - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen[1], 0

    def get_max_length(self) -> int:
        return -1


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least a number ≥ 1."""
    return 1 << (number - 1).bit_length()


def columns_to_read(tokens: int) -> int:
    """How many columns a step of few shapes reads for rows of at most so many tokens: quarters of a power of two, so
    that less than half of what it reads is in vain; at least COLUMN_STEP."""
    quarter = max(COLUMN_STEP, power_of_two(tokens) // 4)
    return -(-tokens // quarter) * quarter


def _up(tokens: int) -> int:
    return -(-tokens // COLUMN_STEP) * COLUMN_STEP


def _resized(buffer: Tensor, rows: int, columns: int, kept: tuple[int, int]) -> Tensor:
    made = buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3])
    made[: kept[0], :, : kept[1]] = buffer[: kept[0], :, : kept[1]]
    return made
