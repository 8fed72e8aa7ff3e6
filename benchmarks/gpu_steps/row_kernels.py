"""Microseconds of one layer's adapters over 64 rows of one token, recorded in a CUDA graph: the two row kernels with
several tiles, warps and parts, against two grouped products of sorted rows and against copies and batched products.

Each of a graph's repetitions reads another copy of the adapters, so that no cache holds them, as in a decoding step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .step import Step, main
from .timing import median_seconds

RANK, ROWS, COPIES = 16, 64, 24
SIDES = ((2048, 2048), (2048, 512), (2048, 8192), (8192, 2048))
SHRINK_CHOICES = (2048, 4096, 8192), (4, 8), (None, 4)
EXPAND_CHOICES = (4096, 8192, 16384), (1, 2, 4)
BEST = 4
"""Choices of a kernel that are reported, the fastest first."""
REPLAYS = 10
"""Timed at once."""


def run(step: Step) -> None:
    if not step.on_gpu:
        return step.add(skipped="the kernels need a GPU")
    for adapters, (inner, outer) in product((64, 8), SIDES):
        load = Load(adapters, inner, outer, step.device)
        step.add(load=f"{inner}→{outer} over {adapters}", **load.figures())


class Load:
    """64 rows of one layer over some adapters."""

    def __init__(self, adapters: int, inner: int, outer: int, device: torch.device) -> None:
        self.device = device
        make = partial(torch.randn, device=device, dtype=torch.bfloat16)
        self.slots = torch.arange(ROWS, device=device) % adapters
        self.order = self.slots.argsort()
        self.back = self.order.argsort()
        self.ends = torch.bincount(self.slots, minlength=adapters + 1).cumsum(0).int()
        self.x, self.y = make(ROWS, inner), make(ROWS, outer)
        self.sides = [(make(adapters + 1, RANK, inner), make(adapters + 1, RANK, outer)) for _ in range(COPIES)]

    def figures(self) -> dict[str, Any]:
        """Microseconds of one repetition."""
        from raytune_llm.models import row_kernels as kernels

        h = kernels.shrink(self.x, self.sides[0][0][:, None], self.slots)[0]
        shrinks = [dict(zip(("tile", "warps", "parts"), each, strict=True)) for each in product(*SHRINK_CHOICES)]
        expands = [dict(zip(("tile", "warps"), each, strict=True)) for each in product(*EXPAND_CHOICES)]

        def shrink(choice: dict[str, Any]) -> float:
            return self.microseconds(lambda a, b: kernels.shrink(self.x, a[:, None], self.slots, **choice))

        def expand(choice: dict[str, Any]) -> float:
            return self.microseconds(lambda a, b: kernels.expand(h, b, self.slots, self.y, **choice))

        def both(a: Tensor, b: Tensor) -> None:
            kernels.expand(kernels.shrink(self.x, a[:, None], self.slots)[0], b, self.slots, self.y)

        return {
            "rows_us": self.microseconds(both),
            "shrink_us": shrink({}),
            "expand_us": expand({}),
            "grouped_us": self.microseconds(self._grouped),
            "gathered_us": self.microseconds(self._gathered),
            "shrink_best": fastest(shrink, shrinks),
            "expand_best": fastest(expand, expands),
        }

    def _grouped(self, a: Tensor, b: Tensor) -> None:
        ordered = self.x.index_select(0, self.order)
        y = F.grouped_mm(F.grouped_mm(ordered, a.transpose(1, 2), offs=self.ends), b, offs=self.ends)
        y.index_select(0, self.back)

    def _gathered(self, a: Tensor, b: Tensor) -> None:
        a, b = a.index_select(0, self.slots), b.index_select(0, self.slots)
        torch.bmm(torch.bmm(self.x[:, None], a.transpose(1, 2)), b)

    def microseconds(self, function: Callable[[Tensor, Tensor], Any]) -> float:
        """Of one call, over all copies of the adapters in one graph."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            function(*self.sides[0])
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for a, b in self.sides:
                function(a, b)
        seconds = median_seconds(lambda: [graph.replay() for _ in range(REPLAYS)], self.device, warm_up=1, at_most=0.02)
        return round(1e6 * seconds / REPLAYS / len(self.sides), 2)


def fastest(measure: Callable[[dict[str, Any]], float], choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest choices with their microseconds."""
    found = [choice | {"us": measure(choice)} for choice in choices]
    return sorted(found, key=lambda choice: choice["us"])[:BEST]


if __name__ == "__main__":
    main(run)
