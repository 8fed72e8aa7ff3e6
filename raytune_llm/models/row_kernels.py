"""Two Triton kernels that add to each row of a product what its own adapter gives, read where it lies in a stack.

    shrink: h[i] = x[i] A[s_i]ᵀ, as sums over parts of the inputs     expand: y[i] += h[i] B[s_i]

A row's adapter is read once, by several programs, so that few rows keep all of a GPU busy. Sums are in fp32 and in an
order that doesn't change; what comes out is rounded once, to y's dtype. Slots are read on the device, so a captured
CUDA graph follows them. Rows of the base, which is the last slot, read and write nothing.

Importing this needs Triton, which comes with PyTorch for CUDA.

Shape letters: B rows, S slots of the stack with the base's, G layers that read the same inputs, K parts, R rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SHRINK_TILE, EXPAND_TILE = 4096, 8192
"""Scalars of an adapter that a program holds at once."""
SHRINK_WARPS, EXPAND_WARPS = 4, 2
"""With these tiles the fastest on an H200, or nearly (`benchmarks/gpu_session.py --steps row-kernels`)."""
LEAST_WIDTH = 32
"""Inputs or outputs of a tile, however large the rank."""
MOST_PARTS = 32
"""Programs that share one row's inputs. Their number doesn't depend on the rows, and so neither does the rounding."""


@triton.jit
def _shrink(  # type: ignore[no-untyped-def]
    x, a, slots, h, base, width, x_row, a_slot, a_group, a_rank,
    rank: tl.constexpr, padded_rank: tl.constexpr, parts: tl.constexpr, part_blocks: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Part `program_id(1)` of the inputs, of row `program_id(0)` and layer `program_id(2)`."""
    row, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row)
    if slot != base:
        ranks = tl.arange(0, padded_rank)
        inside = ranks[:, None] < rank
        own = a + slot * a_slot + group * a_group + ranks[:, None] * a_rank
        total = tl.zeros((padded_rank, block), tl.float32)
        for index in range(part_blocks):
            places = (part * part_blocks + index) * block + tl.arange(0, block)
            read = tl.load(x + row * x_row + places, mask=places < width, other=0.0).to(tl.float32)
            side = tl.load(own + places[None, :], mask=inside & (places[None, :] < width), other=0.0).to(tl.float32)
            total += side * read[None, :]
        into = h + ((group * tl.num_programs(0) + row) * parts + part) * padded_rank
        tl.store(into + ranks, tl.sum(total, axis=1))


@triton.jit
def _expand(  # type: ignore[no-untyped-def]
    y, b, slots, h, base, width, y_row, b_slot, b_rank,
    rank: tl.constexpr, padded_rank: tl.constexpr, parts: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Outputs `block · program_id(1)` and so many more of row `program_id(0)`."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot != base:
        ranks, places = tl.arange(0, padded_rank), tl.program_id(1) * block + tl.arange(0, block)
        is_seen = places < width
        into = y + row.to(tl.int64) * y_row + places
        before = tl.load(into, mask=is_seen, other=0.0).to(tl.float32)
        side = tl.load(
            b + slot * b_slot + ranks[:, None] * b_rank + places[None, :],
            mask=(ranks[:, None] < rank) & is_seen[None, :],
            other=0.0,
        ).to(tl.float32)
        sums = tl.load(h + (row * parts + tl.arange(0, parts)[:, None]) * padded_rank + ranks[None, :])
        added = tl.sum(side * tl.sum(sums, axis=0)[:, None], axis=0)
        tl.store(into, (before + added).to(y.dtype.element_ty), mask=is_seen)


def shrink(
    x: Tensor, a: Tensor, slots: Tensor, *, tile: int = SHRINK_TILE, parts: int | None = None, warps: int = SHRINK_WARPS
) -> Tensor:
    """x[i] A[s_i]ᵀ of each layer, (G, B, K, R) in fp32, K parts of the sum and R a power of two; undefined for rows of
    the base.

    x: (B, in_features); a: (S, G, R, in_features), the last stride 1; slots: (B,), int64. tile, parts (a power of two)
    and warps make no difference to the result but its rounding.
    """
    (rows, width), groups, rank = x.shape, a.shape[1], a.shape[2]
    padded = triton.next_power_of_2(rank)
    block = min(max(LEAST_WIDTH, tile // padded), triton.next_power_of_2(width))
    blocks = triton.cdiv(width, block)
    if parts is None:
        parts = min(MOST_PARTS, triton.next_power_of_2(blocks))
    h = torch.empty(groups, rows, parts, padded, dtype=torch.float32, device=x.device)
    _shrink[rows, parts, groups](
        x, a, slots, h, len(a) - 1, width, x.stride(0), a.stride(0), a.stride(1), a.stride(2),
        rank, padded, parts, triton.cdiv(blocks, parts), block, num_warps=warps,
    )  # fmt: skip
    return h


def expand(
    h: Tensor, b: Tensor, slots: Tensor, y: Tensor, *, tile: int = EXPAND_TILE, warps: int = EXPAND_WARPS
) -> None:
    """y[i] += h[i] B[s_i], in place.

    h: (B, K, R) of `shrink`; b: (S, R, out_features), y: (B, out_features), the last stride of both 1.
    """
    (rows, width), (parts, padded), rank = y.shape, h.shape[1:], b.shape[1]
    block = min(max(LEAST_WIDTH, tile // padded), triton.next_power_of_2(width))
    _expand[rows, triton.cdiv(width, block)](
        y, b, slots, h, len(b) - 1, width, y.stride(0), b.stride(0), b.stride(1),
        rank, padded, parts, block, num_warps=warps,
    )  # fmt: skip
