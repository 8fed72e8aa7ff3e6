"""Rows that begin alike read their common beginning once.

Chat templates, system prompts and instructions are often most of a short record. Rows of one adapter that share their
first tokens are laid out as one long row: the prefix, then what follows it in each row, end to end. Tokens after the
prefix see it and their own row, which is what they would see in a row of their own; all else in a model works on single
tokens and needs to know no more than their positions.

Shape letters: S long rows, C rows in each, P tokens of the prefix, T tokens of a whole row, R = T − P; L = P + C · R.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SMALLEST_SHARE = 0.1
"""Of the tokens that sharing must save; less isn't worth the copies."""


@dataclass(frozen=True)
class SharedPrefix:
    """The layout of S · C rows of T tokens as S long ones."""

    num_rows: int
    """C"""
    prefix_tokens: int
    """P"""
    row_tokens: int
    """T"""

    @classmethod
    def of(cls, ids: np.ndarray) -> SharedPrefix | None:
        """The layout of ids (S, C, T); None where rows have too little in common."""
        num_rows, row_tokens = ids.shape[1:]
        alike = (ids == ids[:, :1]).all((0, 1)) if num_rows > 1 else np.zeros(row_tokens, dtype=bool)
        prefix = min(row_tokens - 1, int(np.logical_and.accumulate(alike).sum()))
        saved = prefix * (num_rows - 1) / (num_rows * row_tokens)
        return cls(num_rows, prefix, row_tokens) if saved >= SMALLEST_SHARE else None

    @property
    def own_tokens(self) -> int:
        """R"""
        return self.row_tokens - self.prefix_tokens

    def long_rows(self, ids: np.ndarray) -> np.ndarray:
        """(S, L) from ids (S, C, T)."""
        own = ids[:, :, self.prefix_tokens :].reshape(len(ids), -1)
        return np.concatenate([ids[:, 0, : self.prefix_tokens], own], 1)

    def positions(self) -> np.ndarray:
        """Of the tokens of a long row in their own rows, (1, L)."""
        own = np.arange(self.prefix_tokens, self.row_tokens)
        return np.concatenate([np.arange(self.prefix_tokens), np.tile(own, self.num_rows)])[None]

    def places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Where tokens, by row (of S · C) and column (of T), are in the flattened long rows."""
        long_row, row = np.divmod(rows, self.num_rows)
        own = self.prefix_tokens + row * self.own_tokens + columns - self.prefix_tokens
        length = self.prefix_tokens + self.num_rows * self.own_tokens
        return long_row * length + np.where(columns < self.prefix_tokens, columns, own)

    def split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """States of long rows (S, H, L, D): the prefixes', (S, H, P, D), and the rows', (S · C, H, R, D)."""
        size, heads, _, width = states.shape
        own = states[:, :, self.prefix_tokens :].view(size, heads, self.num_rows, self.own_tokens, width)
        return states[:, :, : self.prefix_tokens], own.transpose(1, 2).reshape(-1, heads, self.own_tokens, width)

    def lengthened(self, prefix: Tensor, rows: Tensor) -> Tensor:
        """Whole rows, (S · C, H, T, D), from what `split` returned."""
        repeated = prefix.unsqueeze(1).expand(-1, self.num_rows, -1, -1, -1).reshape(len(rows), *prefix.shape[1:])
        return torch.cat([repeated, rows], 2)

    def joined(self, prefix: Tensor, rows: Tensor) -> Tensor:
        """Long rows again, (S, H, L, D)."""
        size, heads, _, width = prefix.shape
        own = rows.view(size, self.num_rows, heads, self.own_tokens, width).transpose(1, 2)
        return torch.cat([prefix, own.reshape(size, heads, -1, width)], 2)
