"""The order in which a trial sees its examples: the same for every backend, a function of the seed only.

Epochs are permutations one after another, so every step has exactly its batch and the k-th example of a run is the same
whatever the batch size, the number of workers or the horizon.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice


def data_order(num_examples: int, seed: int) -> Iterator[int]:
    """Indices of examples, without end: one seeded permutation an epoch."""
    if num_examples < 1:
        raise ValueError("there are no examples to order")
    epoch = 0
    while True:
        indices = list(range(num_examples))
        random.Random(f"{seed}:{epoch}").shuffle(indices)
        yield from indices
        epoch += 1


def first_indices(num_examples: int, seed: int, count: int) -> list[int]:
    """The first `count` indices of the order."""
    return list(islice(data_order(num_examples, seed), count))
