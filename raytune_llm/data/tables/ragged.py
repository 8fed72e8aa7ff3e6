"""Arrays of different lengths, end to end in one flat array: what lists of token ids are kept in.

Flat arrays may be memory-mapped, or lie in Ray's object store: nothing here copies them, except where less than half of
one is pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Indices of rows, (m,)."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """n rows of a flat array."""

    flat: NDArray[Any]
    """(total, …)"""
    starts: NDArray[np.int64]
    """Where each row begins in flat, (n,)."""
    lengths: NDArray[np.int64]
    """(n,)"""

    @classmethod
    def of(cls, flat: NDArray[Any], lengths: NDArray[Any]) -> Ragged:
        """Rows of these lengths, one after the other."""
        lengths = lengths.astype(np.int64)
        return cls(flat, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def join(cls, arrays: Sequence[NDArray[Any]]) -> Ragged:
        """A row for each array; they are of equal shapes but for the first axis. Raises ValueError for none."""
        return cls.of(np.concatenate(arrays), np.array([len(array) for array in arrays], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> NDArray[Any]:
        start = self.starts[row]
        return self.flat[start : start + self.lengths[row]]

    def __reduce__(self) -> tuple[Any, ...]:
        kept = self.compact() if 2 * int(self.lengths.sum()) < len(self.flat) else self
        return Ragged, (kept.flat, kept.starts, kept.lengths)

    def select(self, rows: Rows) -> Ragged:
        """These rows of the same flat array."""
        return Ragged(self.flat, self.starts[rows], self.lengths[rows])

    def places(self) -> NDArray[np.int64]:
        """Where the rows' items are in flat, row after row, (Σ lengths,)."""
        before = np.cumsum(self.lengths) - self.lengths
        return np.repeat(self.starts - before, self.lengths) + np.arange(int(self.lengths.sum()))

    def compact(self) -> Ragged:
        """The same rows in a flat array of their own, in their order; a part of this one where they lie end to end."""
        if len(self) and np.array_equal(self.starts[1:], self.starts[:-1] + self.lengths[:-1]):
            return Ragged.of(self.flat[self.starts[0] : self.starts[-1] + self.lengths[-1]], self.lengths)
        return Ragged.of(self.flat[self.places()], self.lengths)

    def owners(self) -> NDArray[np.int64]:
        """The row of each item, row after row, (Σ lengths,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def padded(self, rows: Rows, width: int, value: int) -> NDArray[np.int64]:
        """These rows with `value` on their right, cut to width; (len(rows), width)."""
        columns = np.arange(width)
        inside = columns < self.lengths[rows][:, None]
        if not inside.any():
            return np.full(inside.shape, value, dtype=np.int64)
        found = self.flat[np.where(inside, self.starts[rows][:, None] + columns, 0)]
        return np.where(inside, found.astype(np.int64), value)
