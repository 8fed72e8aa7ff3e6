"""What training arithmetic takes, guessed from the size of a base alone.

    FLOP = 4 · weights · tokens     with an adapter: forward, and back to the inputs (docs/gpu.md)

Tokens are those of batches padded to their longest example, half as many again where lengths differ much. Leaves out
attention, evaluations and start-up, and what packing saves.
"""

from __future__ import annotations

FLOP_PER_WEIGHT = 4.0
GPU_RATE = 350e12
"""FLOP/s: half of what large products reach on an H100 or H200, as packed steps do."""
CORE_RATE = 0.15e12
"""FLOP/s of one CPU core with bfloat16 products, as packed steps on a Zen 5 reach."""
PADDED = 1.5
"""Tokens of padded batches for each token of the examples."""


def training_flop(num_parameters: int, num_tokens: float) -> float:
    """Of training an adapter on so many tokens."""
    return FLOP_PER_WEIGHT * num_parameters * num_tokens


def training_seconds(num_parameters: int, num_tokens: float, *, has_gpu: bool) -> float:
    """Of one GPU, or of one CPU core."""
    return training_flop(num_parameters, num_tokens) / (GPU_RATE if has_gpu else CORE_RATE)
