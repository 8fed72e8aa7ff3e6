"""LoRA weights by module, and as one row of a table in which many adapters lie side by side.

A row has every module's A as (R, in_features), then every module's B as (R, out_features), R the table's largest rank;
an adapter of rank r < R leaves rows r..R of both at 0. So every matmul with an adapter runs along long contiguous rows.
Heads that are trained with the adapter (a reward model's score) come last in the row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, tuple[Tensor, Tensor]]
"""An adapter: module name → (A (r, in_features), B (out_features, r)), PEFT's orientation."""


class RowLayout:
    """Where each module's A and B lie in a row of `size` scalars."""

    def __init__(
        self, sizes: Mapping[str, tuple[int, int]], max_lora_rank: int, heads: Mapping[str, int] | None = None
    ) -> None:
        """sizes: module → (in_features, out_features); heads: name → number of scalars."""
        self.sizes, self.max_lora_rank = dict(sizes), max_lora_rank
        self.size = 0
        self._a = [self._take(inner * max_lora_rank) for inner, _ in sizes.values()]
        start = self.size
        self._b = [self._take(outer * max_lora_rank) for _, outer in sizes.values()]
        self.b = slice(start, self.size)
        """Where all modules' B lie."""
        self._heads: dict[str, slice] = {}
        for name, length in (heads or {}).items():
            self._heads[name] = self._take(length)

    def _take(self, length: int) -> slice:
        self.size += length
        return slice(self.size - length, self.size)

    def head_views(self, table: Tensor) -> dict[str, Tensor]:
        """Each head's place in a table (S, size), (S, its length)."""
        return {name: table[:, place] for name, place in self._heads.items()}

    def views(self, table: Tensor, lora_rank: int) -> list[tuple[Tensor, Tensor]]:
        """Each module's first R = `lora_rank` rows of A and B in a table (S, size): (S, R, in), (S, R, out)."""
        count, found = len(table), []
        for a_place, b_place, (inner, outer) in zip(self._a, self._b, self.sizes.values(), strict=True):
            a = table[:, a_place].view(count, self.max_lora_rank, inner)
            b = table[:, b_place].view(count, self.max_lora_rank, outer)
            found.append((a[:, :lora_rank], b[:, :lora_rank]))
        return found

    def pack(
        self,
        weights: Mapping[str, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        heads: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """An adapter with its heads as a row, (size,), on the CPU. Raises ValueError when it doesn't fit this
        layout."""
        heads = heads or {}
        if heads.keys() != self._heads.keys():
            raise ValueError(f"the adapter has heads {sorted(heads)}; this table has heads {sorted(self._heads)}")
        missing, unknown = sorted(self.sizes.keys() - weights.keys()), sorted(weights.keys() - self.sizes.keys())
        if missing or unknown:
            raise ValueError(
                f"the adapter lacks modules {missing[:3]} and has modules {unknown[:3]} that aren't adapted here"
            )
        row = torch.zeros(1, self.size, dtype=dtype)
        for (name, (inner, outer)), (into_a, into_b) in zip(
            self.sizes.items(), self.views(row, self.max_lora_rank), strict=True
        ):
            a, b = weights[name]
            lora_rank = a.shape[0]
            if lora_rank > self.max_lora_rank:
                raise ValueError(
                    f"the adapter's rank {lora_rank} at {name} is more than {self.max_lora_rank}, the largest held here"
                )
            if a.shape != (lora_rank, inner) or b.shape != (outer, lora_rank):
                raise ValueError(
                    f"the adapter's shapes {tuple(a.shape)}, {tuple(b.shape)} at {name} don't fit a layer of {inner} "
                    f"to {outer} features; it was made for another base"
                )
            into_a[0, :lora_rank] = a
            into_b[0, :lora_rank] = b.T
        for name, into in self.head_views(row).items():
            into[0] = heads[name]
        return row[0]

    def unpack(self, row: Tensor, lora_rank: int) -> Weights:
        """The inverse of pack: contiguous copies."""
        views = self.views(row.unsqueeze(0), lora_rank)
        return {
            name: (a[0].clone(), b[0].T.clone(memory_format=torch.contiguous_format))
            for name, (a, b) in zip(self.sizes, views, strict=True)
        }


def initial_weights(model: nn.Module, names: Sequence[str], *, lora_rank: int, seed: int) -> Weights:
    """The weights that peft.get_peft_model gives after torch.manual_seed(seed): A Kaiming-uniform, B zero, bit for bit.

    `names` in the model's own order. PEFT draws each layer's nn.Linear defaults first, then A again; so does this.
    """
    weights = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name in names:
            layer: Any = model.get_submodule(name)
            a = nn.Linear(layer.in_features, lora_rank, bias=False).weight.detach()
            b = nn.Linear(lora_rank, layer.out_features, bias=False).weight.detach()
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            weights[name] = (a.to(layer.weight.dtype), nn.init.zeros_(b).to(layer.weight.dtype))
    return weights
