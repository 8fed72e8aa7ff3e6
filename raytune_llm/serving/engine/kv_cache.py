"""The key-value cache of rows that decode together; every row ends at the same column.

A row of n tokens fills the n columns before `end`, so a step writes one column for all rows and distances between
columns are distances between tokens. Rows join and leave without touching the others; the columns before a row's own
start hold finite values and are masked. Buffers grow by doubling and are moved to the left when the first columns are
no longer used.

Shape letters: R rows of the buffers, H key-value heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

FIRST_COLUMNS = 128


class KVCache:
    """Rows 0 to num_rows - 1 are in use."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.start, self.end = 0, 0
        """Columns [start, end) hold what was read; the next step writes column `end`."""
        self.cache: Any = None
        """The past_key_values that a transformers model takes."""
        self._starts: list[int] = []
        self._bias = torch.empty(0)

    @property
    def num_rows(self) -> int:
        return len(self._starts)

    @property
    def bias(self) -> Tensor:
        """The additive attention mask of the next step, (rows, 1, 1, end + 1 - start)."""
        return self._bias[: self.num_rows, None, None, self.start : self.end + 1]

    @property
    def visible(self) -> Tensor:
        """The same as a 0/1 mask, (rows, end + 1 - start): 1 where a row may attend."""
        return (self._bias[: self.num_rows, self.start : self.end + 1] == 0).long()

    def insert(self, filled: DynamicCache, lengths: Sequence[int]) -> None:
        """Append rows whose prompts were read into the cache `filled`, padded on the left to the longest of them."""
        width, first = max(lengths), self.num_rows
        if self.cache is None:
            self._allocate(filled)
        if not self._starts:
            self.start = self.end = width
        self._make_room(max(width, self.end - self.start), 1)
        last = first + len(lengths)
        for layer, read in zip(self.cache.layers, filled.layers, strict=True):
            for into, source in ((layer.keys, read.keys), (layer.values, read.values)):
                into[first:last, :, : self.end - width] = 0
                into[first:last, :, self.end - width : self.end] = source
        self._starts += [self.end - length for length in lengths]
        self._remask()

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = self.num_rows - 1
        if row != last:
            for layer in self.cache.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[row, :, : self.end] = buffer[last, :, : self.end]
            self._starts[row] = self._starts[last]
        self._starts.pop()
        if self._starts:
            self._remask()
        else:
            self.start = self.end = 0

    def make_column(self) -> None:
        """Ensure that the next step has a column to write."""
        self._make_room(self.end - self.start, 1)

    def _allocate(self, filled: DynamicCache) -> None:
        self.cache = Cache(layers=[KVCacheLayer(self, layer, self.max_rows) for layer in filled.layers])
        like = filled.layers[0].keys
        self._bias = torch.zeros(self.max_rows, FIRST_COLUMNS, dtype=like.dtype, device=like.device)

    def _make_room(self, before: int, after: int) -> None:
        """Ensure that at least `before` columns end at `end` and `after` columns follow."""
        columns, used = self._bias.shape[1], self.end - self.start
        if before <= self.end and self.end + after <= columns:
            return
        needed = before + after
        wanted = columns
        while wanted < needed + needed // 4:
            wanted *= 2
        self._move(wanted, before - used)

    def _move(self, columns: int, start: int) -> None:
        """Reallocate buffers of so many columns, their content beginning at `start`."""
        used = self.end - self.start
        for layer in self.cache.layers:
            layer.keys = _moved(layer.keys, columns, self.start, self.end, start)
            layer.values = _moved(layer.values, columns, self.start, self.end, start)
        self._starts = [held - self.start + start for held in self._starts]
        self._bias = self._bias.new_zeros(self.max_rows, columns)
        self.start, self.end = start, start + used
        if self._starts:
            self._remask()

    def _remask(self) -> None:
        self.start = min(self._starts)
        starts = torch.tensor(self._starts, device=self._bias.device)[:, None]
        hidden = torch.arange(self._bias.shape[1], device=self._bias.device) < starts
        # the lowest finite number: softmax of a row of only -inf is NaN
        self._bias[: self.num_rows] = hidden.to(self._bias.dtype) * torch.finfo(self._bias.dtype).min


class KVCacheLayer(CacheLayerMixin):
    """One layer's buffers, (R, H, C, D), as transformers' models write and read them."""

    is_sliding = False

    def __init__(self, kv_cache: KVCache, like: Any, max_rows: int) -> None:
        """`like`: a filled layer of the same shape and dtype."""
        super().__init__()
        self._kv_cache = kv_cache
        for name in ("keys", "values"):
            found = getattr(like, name)
            shape = (max_rows, found.shape[1], FIRST_COLUMNS, found.shape[3])
            setattr(self, name, found.new_zeros(shape))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The buffers are allocated in __init__."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the next column of the first rows, (rows, H, 1, D); return all columns of these rows."""
        rows, start, end = key_states.shape[0], self._kv_cache.start, self._kv_cache.end
        self.keys[:rows, :, end] = key_states[:, :, 0]
        self.values[:rows, :, end] = value_states[:, :, 0]
        return self.keys[:rows, :, start : end + 1], self.values[:rows, :, start : end + 1]

    def get_seq_length(self) -> int:
        return self._kv_cache.end - self._kv_cache.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _moved(buffer: Tensor, columns: int, start: int, end: int, to: int) -> Tensor:
    """A buffer of so many columns with [start, end) at `to`, 0 elsewhere."""
    made = buffer.new_zeros(*buffer.shape[:2], columns, buffer.shape[3])
    made[:, :, to : to + end - start] = buffer[:, :, start:end]
    return made
