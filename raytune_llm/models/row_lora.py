"""A decoding step in which each row, one token, goes through any adapter of a stack, read where it lies.

    y[i] = x[i] Wᵀ + b + (x[i] A[s_i]ᵀ) B[s_i],    s_i the slot of row i, B times its scale

Two kernels (row_kernels.py) in place of the sorting and the grouped products of grouped_lora.py, whose tiles are made
for many rows of one adapter. Layers that read the same tensor one after another, as queries, keys and values do, share
the first of them. Slots lie in a tensor that changes in place, which a captured CUDA graph reads again. Inference only;
left out: dropout, several tokens a row.

Shape letters: B rows of a batch, S slots of the stack with the base's, G layers that read the same inputs, K parts of a
sum, R rank.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from raytune_llm.errors import first_line
from raytune_llm.models.adapter_route import LayerViews
from raytune_llm.models.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

LEAST_CAPABILITY = 8
"""Major compute capability from which bf16 is computed with."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MOST_RANK = 256
"""A tile of the kernels holds all ranks of some inputs."""
TRIED_RANK, TRIED_SIZES = 5, (200, 72)
ALLOWED_DISTANCE = 1e-5
"""Of the tried product in fp32 from the exact one, as a part of it; the kernels round the result only."""


class RowKernels(Protocol):
    """What row_kernels.py has."""

    def shrink(self, x: Tensor, a: Tensor, slots: Tensor) -> Tensor:
        """x[i] A[s_i]ᵀ for x (B, in_features) and A (S, G, R, in_features): (G, B, K, R), to be summed over K."""
        ...

    def expand(self, h: Tensor, b: Tensor, slots: Tensor, y: Tensor) -> None:
        """Add h[i] B[s_i] to y (B, out_features) for h (B, K, R) and B (S, R, out_features)."""
        ...


def row_kernels(table: Tensor, lora_rank: int) -> RowKernels | None:
    """The kernels for the rows of a table, (S, P), of adapters up to a rank; None where they don't work."""
    if table.device.type != "cuda" or table.dtype not in DTYPES or lora_rank > MOST_RANK:
        return None
    return _tried_kernels(table.device)


@lru_cache
def _tried_kernels(device: torch.device) -> RowKernels | None:
    """Logs why there are none. Raises what says that the device is out of memory, which may have more later."""
    if torch.cuda.get_device_capability(device)[0] < LEAST_CAPABILITY:
        return None
    try:
        from raytune_llm.models import row_kernels as kernels

        check_kernels(kernels, device)
    except Exception as error:  # whatever Triton or its compiler raises
        if is_out_of_memory(error):
            raise
        logger.warning("decoding goes through adapters without the kernels for rows: %s", first_line(error))
        return None
    return kernels


def check_kernels(kernels: RowKernels, device: torch.device) -> None:
    """Raises ValueError where a small product in bf16 differs from the exact one by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    inner, outer = TRIED_SIZES
    shapes = (4, inner), (3, 2, TRIED_RANK, inner), (3, TRIED_RANK, outer), (4, outer)
    x, a, b, y = (torch.randn(shape, generator=generator).bfloat16().to(device) for shape in shapes)
    slots = torch.tensor([1, 2, 0, 1], device=device)
    b[2] = 0
    added = torch.einsum("bi,bri,bro->bo", x.double(), a[slots, 1].double(), b[slots].double())
    h = kernels.shrink(x, a, slots)[1]
    for result, allowed in ((y.float(), ALLOWED_DISTANCE), (y.clone(), 4 * torch.finfo(y.dtype).eps)):
        kernels.expand(h, b, slots, result)
        exact = y.double() + added
        distance = float((result.double() - exact).norm() / exact.norm())
        if not distance <= allowed:
            raise ValueError(f"a product with adapters is off by {distance:.2g} of its size")


class RowRoute:
    """The slots of B rows, over views of all slots of a stack."""

    def __init__(self, layers: Sequence[LayerViews], slots: Sequence[int], kernels: RowKernels) -> None:
        """layers: of each layer A and B of all S slots; the last one is the base."""
        self.layers, self._kernels = layers, kernels
        self._slots = torch.empty(len(slots), dtype=torch.long, device=layers[0].a.device)
        self._together: dict[int, int] = {}
        """How many layers from one on read the same tensor, by the first one's index."""
        self._x: Tensor | None = None
        self._h: Tensor = torch.empty(0)
        """The last inputs, and h of the layers that read them, (G, B, K, R)."""
        self._first, self._last = 0, -1
        """The first of these layers, and the one that was computed last."""
        self.update(slots)

    def update(self, slots: Sequence[int]) -> None:
        """Other slots for the same number of rows, in place."""
        self._slots.copy_(torch.tensor(slots))
        self._forget()

    def linear(self, x: Tensor, base: nn.Linear, index: int) -> Tensor:
        """The layer's output, (B, 1, out_features) or (B, out_features) as x is, of the base's dtype, or fp32 of an
        FP32Head."""
        y: Tensor = base(x)
        rows = y.view(len(self._slots), base.out_features)
        self._kernels.expand(self._partials(x, index), self.layers[index].b, self._slots, rows)
        if index == len(self.layers) - 1:
            self._forget()
        return y

    def _forget(self) -> None:
        """Nothing is shared with the next step, and no memory of a graph is held."""
        self._x, self._h, self._last = None, torch.empty(0), -1

    def _partials(self, x: Tensor, index: int) -> Tensor:
        """Of x Aᵀ, (B, K, R)."""
        if x is not self._x or index <= self._last:
            self._x, self._first = x, index
            self._h = self._shrink(x, index, self._together.get(index, 1))
        self._last = index
        place = index - self._first
        if place >= len(self._h):
            together = self.layers[self._first : index + 1]
            if place > len(self._h) or stacked(together) is None:
                return self._shrink(x, index, 1)[0]
            # computed as from now on, so that what is compiled for it is there before a graph is recorded
            self._together[self._first] = place + 1
            self._h = self._shrink(x, self._first, place + 1)
        return self._h[place]

    def _shrink(self, x: Tensor, first: int, count: int) -> Tensor:
        """Of so many layers from the first one on, (G, B, K, R)."""
        rows = x.reshape(len(self._slots), x.shape[-1])
        a = stacked(self.layers[first : first + count])
        assert a is not None
        return self._kernels.shrink(rows if rows.stride(1) == 1 else rows.contiguous(), a, self._slots)


def stacked(layers: Sequence[LayerViews]) -> Tensor | None:
    """A of some layers as one view, (S, G, R, in_features); None where they don't lie at equal distances."""
    sides = [layer.a for layer in layers]
    first, places = sides[0], [side.storage_offset() for side in sides]
    distance = places[1] - places[0] if len(places) > 1 else first.shape[1] * first.shape[2]
    same = first.shape, first.stride(), first.untyped_storage().data_ptr()
    are_alike = all((side.shape, side.stride(), side.untyped_storage().data_ptr()) == same for side in sides)
    if not are_alike or places != [places[0] + place * distance for place in range(len(places))]:
        return None
    slots, rank, width = first.shape
    shape, strides = (slots, len(sides), rank, width), (first.stride(0), distance, *first.stride()[1:])
    return first.as_strided(shape, strides, places[0])
