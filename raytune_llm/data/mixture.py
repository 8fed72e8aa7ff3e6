"""Which training examples an epoch has: a share of the records, and each source as often as its weight says.

A share is the beginning of one seeded order of each source's records, so that a smaller share is part of a larger one,
and a part of a pass over a source is the beginning of its share. All trials read one table; they differ in indices.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a trial takes of the training records."""

    subset: float
    """Share of each source's records; > 0 and ≤ 1."""
    weights: Mapping[str, float]
    """Passes over a source's share in an epoch, by its name, in the order of the sources; none where there is one."""


def epoch_indices(
    num_examples: int,
    *,
    subset: float = 1.0,
    weights: Sequence[float] = (),
    sources: NDArray[np.int64] | None = None,
    seed: int,
) -> Sequence[int]:
    """Indices of an epoch's examples, ascending: with weight 2 twice; with weight 0.5 every second, drawn by the seed,
    at least one of a source; 2.5 is both. `sources`: which weight each example has, (num_examples,); None = all the
    first."""
    if subset == 1 and all(weight == 1 for weight in weights):
        return range(num_examples)
    shuffled = list(range(num_examples))
    random.Random(f"{seed}:records").shuffle(shuffled)
    order, passes = np.array(shuffled, dtype=np.int64), np.zeros(num_examples, dtype=np.int64)
    for place, weight in enumerate(weights or (1.0,)):
        own = order if sources is None else order[sources[order] == place]
        kept = own[: _share(len(own), subset)]
        passes[kept] = math.floor(weight)
        passes[kept[: _share(len(kept), weight % 1)]] += 1
    found: list[int] = np.repeat(np.arange(num_examples), passes).tolist()
    return found


def epoch_size(counts: Sequence[int], *, subset: float = 1.0, weights: Sequence[float] = ()) -> int:
    """How many examples an epoch has, of sources with so many records each."""
    kept = [_share(count, subset) for count in counts]
    each = weights or [1.0] * len(kept)
    return sum(math.floor(weight) * count + _share(count, weight % 1) for weight, count in zip(each, kept, strict=True))


def _share(count: int, part: float) -> int:
    """A part of so many, at least one where there is any."""
    return max(1, round(part * count)) if count and part else 0
