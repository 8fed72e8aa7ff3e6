"""The order in which a trial sees its examples: the same for every backend, a function of the seed only.

Epochs are permutations one after another, so every step has exactly its batch and the k-th example of a run is the same
whatever the batch size, the number of workers or the horizon.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice


def data_order(epoch: Sequence[int], seed: int) -> Iterator[int]:
    """Indices of examples, without end: one seeded permutation of an epoch's after another."""
    if not epoch:
        raise ValueError("there are no examples to order")
    number = 0
    while True:
        indices = list(epoch)
        random.Random(f"{seed}:{number}").shuffle(indices)
        yield from indices
        number += 1


def first_indices(epoch: Sequence[int], seed: int, count: int) -> list[int]:
    """The first `count` indices of the order."""
    return list(islice(data_order(epoch, seed), count))
