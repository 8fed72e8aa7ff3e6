"""A forward pass in which each row goes through any adapter of a stack, read where it lies.

    y[i] = x[i] Wᵀ + b + (x[i] A[s_i]ᵀ) B[s_i],    s_i the slot of row i, B times its scale

Rows are sorted by slot, so that each adapter multiplies one run of rows in a grouped matrix product
(torch.nn.functional.grouped_mm). Nothing of the stack is copied: when answers join or leave, only small tensors of
numbers change, in place, which a captured CUDA graph reads again. Inference only; left out: dropout.

Shape letters: B rows of a batch, T tokens, S slots of the stack with the base's, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raytune_llm.models.adapter_route import LayerViews
from raytune_llm.models.fp32_head import FP32Head

ALIGNMENT_BYTES = 16
"""grouped_mm wants strides in multiples of this."""
MOST_GROUPS = 1024
"""grouped_mm takes fewer."""
GROUPED_CAPABILITIES = (9, 10)
"""Major compute capabilities with a kernel of its own; elsewhere CUDA's grouped_mm reads the offsets on the host."""


def can_group(table: Tensor, layers: Sequence[LayerViews]) -> bool:
    """Whether a grouped product over the rows of a table, (S, P), is one kernel: bf16 on a recent GPU, and aligned."""
    if table.dtype != torch.bfloat16 or table.device.type != "cuda" or len(table) >= MOST_GROUPS:
        return False
    return torch.cuda.get_device_capability(table.device)[0] in GROUPED_CAPABILITIES and is_aligned(layers)


def is_aligned(layers: Sequence[LayerViews]) -> bool:
    """Whether grouped_mm takes the strides and addresses of these views, and of the products in between."""
    return all(
        view.data_ptr() % ALIGNMENT_BYTES == 0
        and all(size * view.element_size() % ALIGNMENT_BYTES == 0 for size in (*view.stride()[:-1], view.shape[1]))
        for layer in layers
        for view in (layer.a, layer.b)
    )


class GroupedRoute:
    """The slots of B rows, over views of all slots of a stack."""

    def __init__(self, layers: list[LayerViews], slots: Sequence[int]) -> None:
        """layers: of each layer A and B of all S slots; the last one is the base."""
        self.layers = layers
        device = layers[0].a.device
        self._numbers = torch.empty(3, len(slots), dtype=torch.long, device=device)
        self._slots, self._order, self._back = self._numbers
        self._ends = torch.empty(len(layers[0].a), dtype=torch.int32, device=device)
        self.update(slots)

    def update(self, slots: Sequence[int]) -> None:
        """Other slots for the same number of rows, in place."""
        count = len(self._ends)
        order = sorted(range(len(slots)), key=lambda row: slots[row])
        back = [0] * len(slots)
        for place, row in enumerate(order):
            back[row] = place
        sizes = [0] * count
        for slot in slots:
            sizes[slot] += 1
        self._numbers.copy_(torch.tensor([list(slots), order, back]))
        self._ends.copy_(torch.tensor(sizes).cumsum(0))

    def linear(self, x: Tensor, base: nn.Linear, index: int) -> Tensor:
        """The layer's output, (B, T, out_features) or (B·T, out_features) as x is, of the base's dtype, or fp32 of an
        FP32Head."""
        if isinstance(base, FP32Head):
            return base(x) + self._selected(x, index)
        y = self._product(x, index)
        if base.bias is not None:
            y += base.bias
        y.addmm_(x.reshape(-1, x.shape[-1]), base.weight.T)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _product(self, x: Tensor, index: int) -> Tensor:
        """(x Aᵀ) B, (B·T, out_features), in the order of x."""
        views, count = self.layers[index], len(self._order)
        rows = x.reshape(count, -1)
        tokens = rows.shape[1] // x.shape[-1]
        ordered = rows.index_select(0, self._order).view(-1, x.shape[-1])
        ends = self._ends if tokens == 1 else self._ends * tokens
        h = F.grouped_mm(ordered, views.a.transpose(1, 2), offs=ends)
        y = F.grouped_mm(h, views.b, offs=ends)
        return y.view(count, -1).index_select(0, self._back).view(-1, y.shape[-1])

    def _selected(self, x: Tensor, index: int) -> Tensor:
        """The same for a head, in fp32, of x's shape: grouped_mm would round to half precision."""
        views = self.layers[index]
        a, b = (view.index_select(0, self._slots).float() for view in (views.a, views.b))
        y = (x.reshape(len(a), -1, x.shape[-1]).float() @ a.transpose(1, 2)) @ b
        return y.view(*x.shape[:-1], y.shape[-1])
