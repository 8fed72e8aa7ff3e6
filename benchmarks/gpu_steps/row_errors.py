"""The kernels for rows of one token against fp64: odd ranks and widths, repeated and absent adapters, sums that
stay fp32 as a head's do, and a captured CUDA graph whose slots change."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

RANKS, ROWS, WIDTHS = (1, 4, 16, 33, 64), (1, 7, 64), ((2048, 512), (131, 77))
SLOTS, LAYERS = 9, 3


def row_kernel_figures(device: torch.device) -> dict[str, Any]:
    """Largest distances, as parts of the exact products: of what comes out in bf16 (its rounding alone is 2e-3) and in
    fp32, and of a replayed graph after its slots changed."""
    from raytune_llm.models import row_kernels as kernels

    found = {"rows_bf16_distance": 0.0, "rows_fp32_distance": 0.0}
    for rank, rows, (inner, outer) in product(RANKS, ROWS, WIDTHS):
        x, a, b, y = drawn(rank, rows, inner, outer, device)
        slots = drawn_slots(rows, device)
        h = kernels.shrink(x, a, slots)
        for name, dtype in (("rows_bf16_distance", torch.bfloat16), ("rows_fp32_distance", torch.float32)):
            for layer in range(LAYERS):
                result = y.to(dtype, copy=True)
                kernels.expand(h[layer], b, slots, result)
                found[name] = max(found[name], distance(result, exact(x, a[:, layer], b, slots, y)))
    return found | {"rows_replayed_distance": replayed_distance(kernels, device)}


def drawn(rank: int, rows: int, inner: int, outer: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, A of some layers, B, y. The base's adapter isn't finite: nothing may read it."""
    make = torch.Generator(device).manual_seed(rank)
    shapes = (rows, inner), (SLOTS, LAYERS, rank + 1, inner), (SLOTS, rank + 1, outer), (rows, outer)
    x, a, b, y = (torch.randn(shape, generator=make, device=device).bfloat16() for shape in shapes)
    a[-1] = b[-1] = torch.nan
    return x, a[:, :, :rank], b[:, :rank], y


def drawn_slots(rows: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randint(SLOTS, (rows,), generator=torch.Generator().manual_seed(seed)).to(device)


def exact(x: Tensor, a: Tensor, b: Tensor, slots: Tensor, y: Tensor) -> Tensor:
    """In fp64."""
    added = torch.einsum("bi,bri,bro->bo", x.double(), a[slots].double(), b[slots].double())
    return y.double() + added.where((slots < len(a) - 1)[:, None], 0.0)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def replayed_distance(kernels: Any, device: torch.device) -> float:
    """Of a recorded pair of kernels after other slots were written to the tensor that it reads."""
    x, a, b, y = drawn(16, 64, 8192, 2048, device)
    slots, result = drawn_slots(64, device), y.float()

    def product_of_rows() -> None:
        kernels.expand(kernels.shrink(x, a, slots)[1], b, slots, result)

    product_of_rows()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product_of_rows()
    slots.copy_(drawn_slots(64, device, seed=1))
    result.copy_(y)
    graph.replay()
    return distance(result, exact(x, a[:, 1], b, slots, y))
