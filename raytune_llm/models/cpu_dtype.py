"""Whether a CPU computes faster in bfloat16: measured, in a few milliseconds.

CPUs with AMX or AVX512-BF16 multiply matrices 4 to 9 times faster in bfloat16 than in float32; others emulate it, and
are slower. Small bases are left in float32: their passes are bound by other things, and they have no precision to
spare.
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F

SMALLEST_BASE = 30_000_000
"""Parameters from which bfloat16 is considered."""
SMALLEST_GAIN = 1.5
ROWS = 256
REPEATS = 9
"""Of which the fastest counts."""


def prefers_bf16(hidden_size: int, num_parameters: int) -> bool:
    """Whether auto means bfloat16 on this CPU for a base of this size."""
    return num_parameters >= SMALLEST_BASE and bf16_gain(hidden_size) >= SMALLEST_GAIN


@lru_cache
def bf16_gain(hidden_size: int) -> float:
    """How many times faster a product of this CPU with a square matrix of this side is in bfloat16 than in float32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other on a busy machine
    try:
        float32, bf16 = (_fastest(hidden_size, dtype) for dtype in (torch.float32, torch.bfloat16))
    finally:
        torch.set_num_threads(threads)
    return float32 / bf16


@torch.inference_mode()
def _fastest(side: int, dtype: torch.dtype) -> float:
    """CPU seconds of a product."""
    x, weight = torch.zeros(ROWS, side, dtype=dtype), torch.zeros(side, side, dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        started = time.thread_time()
        F.linear(x, weight)
        seconds.append(time.thread_time() - started)
    return min(seconds)
