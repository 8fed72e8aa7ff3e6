"""Evaluation of many adapters at once: every batch of eval examples is tokenised, padded and run once for all of them.

Scores are evaluation/loss.py's, so packed and unpacked trials report the same metrics by the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from raytune_llm.evaluation.loss import Score, Scores
from raytune_llm.evaluation.terms import Better
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.packed.batches import Batch, PassBudget, Terms, TokenTable, split_shared
from raytune_llm.training.packed.losses import by_slots


class Head(Protocol):
    """Gives the model's outputs on a batch."""

    shares_prefix: bool

    def outputs(self, batch: Batch) -> Outputs: ...


@torch.no_grad()
def score(
    head: Head, table: TokenTable, terms: Sequence[Terms], budget: PassBudget, device: torch.device
) -> list[Scores]:
    """Scores of all examples for each of `terms`, through the model's present route of as many slots."""
    sums: list[dict[str, np.ndarray]] = [{} for _ in terms]
    kinds: list[dict[str, tuple[float, Better]]] = [{} for _ in terms]
    share_among = len(terms) if head.shares_prefix else None
    for rows in split_shared(table, len(terms), budget):
        tiled = np.tile(rows, len(terms))
        batches = {name: table.batch(name, tiled, device, share_among=share_among) for name in table.names}
        outputs = {name: head.outputs(batch) for name, batch in batches.items()}
        for start, end, found in by_slots(terms, outputs):
            for name, term in found.items():
                both = torch.stack([term.sum.double(), term.weight.double()], -1).view(end - start, len(rows), 2)
                for slot, columns in zip(range(start, end), both.cpu().numpy(), strict=True):
                    sums[slot].setdefault(name, np.zeros((table.num_examples, 2)))[rows] = columns
                    kinds[slot][name] = term.coefficient, term.better
    num_labels = table.num_labels()
    return [
        Scores(
            {name: Score(both[:, 0], both[:, 1], *kind[name]) for name, both in of_slot.items()},
            num_labels,
            table.num_bytes,
        )
        for of_slot, kind in zip(sums, kinds, strict=True)
    ]
