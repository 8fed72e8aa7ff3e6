"""A forward pass in which each row goes through any of a few adapters, by products with all of them.

    y[i] = x[i] Wᵀ + b + (m[i] ⊙ (x[i] Aᵀ)) B

A and B are those of all the adapters below each other, and m[i] keeps what belongs to the adapter of row i. A few dozen
columns more in two products cost a CPU less than a small product for each row. Inference only; left out: dropout.

Shape letters: B rows of a batch, T tokens, K ranks of all the adapters together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytune_llm.models.adapter_route import LayerViews
from raytune_llm.models.fp32_head import FP32Head


class MaskedAdapters:
    """Copies of some slots' adapters below each other. Raises ValueError when a number of them isn't finite: 0 times
    that would spoil other rows."""

    def __init__(self, layers: Sequence[LayerViews], slots: Sequence[int], lora_ranks: Sequence[int]) -> None:
        """layers: views of each of these slots; slots: their names in `hidden`; lora_ranks: of each slot."""
        self.layers = [(_below(layer.a, lora_ranks), _below(layer.b, lora_ranks)) for layer in layers]
        if not all(bool(side.isfinite().all()) for pair in self.layers for side in pair):
            raise ValueError(f"not all numbers of the adapters in slots {list(slots)} are finite")
        self._owners = torch.tensor([slot for slot, rank in zip(slots, lora_ranks, strict=True) for _ in range(rank)])

    def route(self, slots: Sequence[int]) -> MaskedRoute:
        """For rows through these slots; a slot that isn't among the adapters is the base."""
        hidden = torch.tensor(slots)[:, None] != self._owners
        return MaskedRoute(self.layers, hidden[:, None].to(self.layers[0][0].device))


class MaskedRoute:
    """The adapters of B rows."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], hidden: Tensor) -> None:
        """layers: A (K, in_features) and B (K, out_features), times its scale, of each; hidden: which of the K a row
        doesn't go through, (B, 1, K)."""
        self._layers, self._hidden = layers, hidden

    def linear(self, x: Tensor, base: nn.Linear, index: int) -> Tensor:
        """The output of layer `index` for x, (B, T, in_features) or (B·T, in_features)."""
        a, b = self._layers[index]
        rows = x.reshape(len(self._hidden), -1, x.shape[-1])
        if isinstance(base, FP32Head):
            h = F.linear(rows.float(), a.float()).masked_fill_(self._hidden, 0)
            return base(x) + (h @ b.float()).view(*x.shape[:-1], -1)
        h = F.linear(rows, a).masked_fill_(self._hidden, 0).view(-1, len(a))
        y = h @ b if base.bias is None else torch.addmm(base.bias, h, b)
        y.addmm_(rows.view(-1, x.shape[-1]), base.weight.T)
        return y.view(*x.shape[:-1], y.shape[-1])


def _below(views: Tensor, lora_ranks: Sequence[int]) -> Tensor:
    """(S, R, width) to (K, width): of each slot what lies within its rank."""
    return torch.cat([view[:rank] for view, rank in zip(views, lora_ranks, strict=True)])
