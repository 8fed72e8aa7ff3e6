"""How often an epoch sees each record, where sources have weights."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence


def mixed_indices(weights: Sequence[float], seed: int) -> list[int]:
    """Indices of one epoch, in order: an index with weight 2 occurs twice; of those with weight 0.5 every second, drawn
    by the seed, at least one; 2.5 is both."""
    passes = [math.floor(weight) for weight in weights]
    parts: dict[float, list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        if weight % 1:
            parts[weight % 1].append(index)
    for part, indices in parts.items():
        for index in random.Random(f"{seed}:{part}").sample(indices, max(1, round(part * len(indices)))):
            passes[index] += 1
    return [index for index, count in enumerate(passes) for _ in range(count)]
