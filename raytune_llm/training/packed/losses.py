"""Sums and weights of the terms of every slot over a whole step, and the loss of one micro-pack of it.

Slots are never added to each other by multiplication with zeros, so that a NaN stays in its own slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs
from raytune_llm.training.packed.batches import Terms

Metrics = dict[str, float]
"""`loss`, the whole objective, and Σ sum / Σ weight of each term by its name; a term that is the whole loss is not
repeated."""


class StepLosses:
    """The losses of one step, added up over its micro-packs."""

    def __init__(self, weights: Sequence[Mapping[str, float]]) -> None:
        """`weights`: each slot's weight of each term over the whole step, which gradients need before the first
        backward pass."""
        self._weights = weights
        self._coefficients: list[dict[str, float]] = [{} for _ in weights]
        self._keys: list[tuple[int, str]] = []
        self._sums: list[Tensor] = []

    def add(self, slots: Sequence[int], terms: Sequence[Terms], outputs: dict[str, Outputs]) -> Tensor:
        """Count a micro-pack: equal numbers of rows for each slot, in order, and the terms of each.

        Returns its part of Σ_slots loss, a scalar. Raises ValueError when a method's terms give no loss.
        """
        loss: Tensor | None = None
        for start, end, found in by_slots(terms, outputs):
            group = slots[start:end]
            for name, term in found.items():
                sums = term.sum.view(len(group), -1).sum(1)
                self._keys.extend((slot, name) for slot in group)
                self._sums.append(sums.detach())
                for slot in group:
                    self._coefficients[slot][name] = term.coefficient
                if term.coefficient:
                    factors = [_ratio(term.coefficient, self._weights[slot][name]) for slot in group]
                    share = (sums * torch.tensor(factors, dtype=sums.dtype).to(sums.device, non_blocking=True)).sum()
                    loss = share if loss is None else loss + share
        if loss is None:
            raise ValueError("the method's terms all have coefficient 0, so there is nothing to learn")
        return loss

    def metrics(self) -> list[Metrics]:
        """Each slot's metrics of the step."""
        totals: list[dict[str, float]] = [{} for _ in self._weights]
        for (slot, name), amount in zip(self._keys, torch.cat(self._sums).double().tolist(), strict=True):
            totals[slot][name] = totals[slot].get(name, 0.0) + amount
        found = []
        for total, weight, coefficient in zip(totals, self._weights, self._coefficients, strict=True):
            values = {name: _ratio(amount, weight[name]) for name, amount in total.items()}
            parts = [name for name in values if coefficient[name]]
            loss = sum(coefficient[name] * values[name] for name in parts)
            if len(parts) == 1:
                del values[parts[0]]
            found.append({"loss": loss, **values})
        return found


def by_slots(terms: Sequence[Terms], outputs: dict[str, Outputs]) -> Iterator[tuple[int, int, dict[str, Term]]]:
    """(first slot, last slot + 1, their terms): adjacent slots with the same terms are evaluated at once.

    outputs: equal numbers of rows for each of `terms`, in order.
    """
    num_rows = len(next(iter(outputs.values())).mask) // len(terms)
    start = 0
    for end in range(1, len(terms) + 1):
        if end < len(terms) and terms[end] == terms[start]:
            continue
        part = slice(start * num_rows, end * num_rows)
        yield start, end, terms[start]({name: of_all.rows(part) for name, of_all in outputs.items()})
        start = end


def _ratio(amount: float, weight: float) -> float:
    """0 where nothing counted."""
    return amount / weight if weight else 0.0
