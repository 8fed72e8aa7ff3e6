"""Which rows go through the model together.

A step's rows are split into micro-packs: some slots, an equal number of rows of each. How they are split changes no
result, only padding and the number of passes. Rows of one slot may be bucketed by length where no dropout stream ties
them to an order; slots may always be bucketed among each other. Both splits are the cheapest under the cost model

    passes · overhead_tokens + padded tokens,    each pass ≤ max_tokens,

found exactly by dynamic programming over rows (slots) sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raytune_llm.data.examples import IGNORED, Example
from raytune_llm.data.mixture import epoch_indices
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.data.tables.ragged import Ragged
from raytune_llm.evaluation.terms import Term
from raytune_llm.models.outputs import Outputs
from raytune_llm.models.shared_prefix import SharedPrefix

Terms = Callable[[dict[str, Outputs]], dict[str, Term]]


@dataclass(frozen=True)
class Batch:
    """One named sequence of some examples, right-padded."""

    input_ids: Tensor
    """(B, T), or the long rows of `shared_prefix`; of an encoder-decoder base the encoder's."""
    labels: Tensor
    """(B, T'); IGNORED where no loss is due. T' = T for a causal base."""
    mask: Tensor
    """True at labels that count, (B, T'); the first of a causal base never does."""
    where: Tensor
    """Positions of those labels in the flattened batch, (K,)."""
    predicts: Tensor
    """Positions in the flattened input_ids of the tokens that predict them, (K,); of a causal base."""
    lengths: np.ndarray
    """Own length of each row, (B,)."""
    label_lengths: np.ndarray
    """Own length of each row of labels, (B,)."""
    reference: Tensor | None = None
    """Sequence.reference, (B,), fp64."""
    top_k_ids: Tensor | None = None
    """The teacher's likeliest tokens for each label that counts, (K, k)."""
    teacher_logprobs: Tensor | None = None
    """Their log-probabilities and that of all other tokens, (K, k + 1), fp32."""
    shared_prefix: SharedPrefix | None = None
    """The layout of input_ids; None = a row each."""
    positions: Tensor | None = None
    """Of the tokens of a long row, (1, L)."""

    @property
    def layout(self) -> dict[str, Any]:
        """What a causal model needs in addition to input_ids."""
        if self.shared_prefix is None:
            return {}
        return {"shared_prefix": self.shared_prefix, "position_ids": self.positions}


class TokenTable:
    """Encoded examples as batches need them: one table, shared by every slot that learns from them."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        is_encoder_decoder: bool,
        sources: NDArray[np.int64] | None = None,
    ) -> None:
        """`sources`: which of several sources each example is of, (num_examples,)."""
        if not examples:
            raise ValueError("there are no examples to train on")
        self.is_encoder_decoder, self._sources = is_encoder_decoder, sources
        table = ExampleTable.of(examples)
        self.names = table.names
        self.num_examples = len(table)
        self._columns = table.columns
        num_bytes = table.num_bytes()
        self.num_bytes = None if num_bytes is None else num_bytes.astype(np.float64)
        """Of each example's targets, (num_examples,); None where they aren't known."""
        self._label_lengths = {name: column.label_lengths for name, column in table.columns.items()}
        lengths = table.lengths()
        if is_encoder_decoder:
            lengths += np.sum(list(self._label_lengths.values()), axis=0)
        self.lengths: np.ndarray = lengths
        """Tokens that go through the model for each example, (num_examples,)."""

    def part(self, rows: np.ndarray) -> TokenTable:
        """These examples."""
        columns = {name: column.select(rows) for name, column in self._columns.items()}
        return TokenTable(ExampleTable(columns), is_encoder_decoder=self.is_encoder_decoder)

    def batch(
        self, name: str, rows: np.ndarray, device: torch.device | None = None, *, share_among: int | None = None
    ) -> Batch:
        """The named sequence of these examples; padding is token 0, which nothing ever attends to or learns from.
        share_among: number of slots, each with equally many neighbouring rows, which may share their prefix."""
        column = self._columns[name]
        lengths, label_lengths = column.ids.lengths[rows], self._label_lengths[name][rows]
        width, label_width = int(lengths.max()), int(label_lengths.max())
        if self.is_encoder_decoder and width == label_width:
            # Layers know by the length of their input whether it is the encoder's or the decoder's.
            label_width += 1
        targets = column.padded_labels(rows, label_width)
        mask = targets != IGNORED
        if not self.is_encoder_decoder:
            mask[:, 0] = False
        padded, where = column.ids.padded(rows, width, 0), np.flatnonzero(mask)
        predicts, positions = where - 1, None
        each = padded.reshape(share_among or len(rows), -1, width)
        prefix = SharedPrefix.of(each)
        if prefix is not None:
            padded, positions = prefix.long_rows(each), uploaded(prefix.positions(), device)
            predicts = prefix.places(*np.divmod(predicts, width))
        arrays = (padded, targets, mask, where, predicts)
        input_ids, labels_of, counts, where_of, predicts_of = (uploaded(array, device) for array in arrays)
        reference = None if column.references is None else uploaded(column.references[rows], device)
        top_k_ids, teacher_logprobs = (_gathered(part, rows, device) for part in column.teacher or (None, None))
        return Batch(
            input_ids=input_ids,
            labels=labels_of,
            mask=counts,
            where=where_of,
            predicts=predicts_of,
            lengths=lengths,
            label_lengths=label_lengths,
            reference=reference,
            top_k_ids=top_k_ids,
            teacher_logprobs=teacher_logprobs,
            shared_prefix=prefix,
            positions=positions,
        )

    def epoch(self, *, subset: float, weights: Sequence[float], seed: int) -> Sequence[int]:
        """Indices of the examples of an epoch, as epoch_indices gives them."""
        return epoch_indices(self.num_examples, subset=subset, weights=weights, sources=self._sources, seed=seed)

    def num_labels(self) -> np.ndarray:
        """Labels that count in all of an example's sequences, (num_examples,)."""
        first = 0 if self.is_encoder_decoder else 1
        return np.sum([column.num_labels(first) for column in self._columns.values()], axis=0)

    def weights(self, terms: Terms, chunk: int = 256) -> dict[str, np.ndarray]:
        """Each example's weight in each term, (num_examples,), fp64. Weights don't depend on the model, so no forward
        is run."""
        found: dict[str, list[np.ndarray]] = {}
        for start in range(0, self.num_examples, chunk):
            rows = np.arange(start, min(start + chunk, self.num_examples))
            outputs = {}
            for name in self.names:
                mask = self.batch(name, rows).mask.double()
                none, zero = torch.zeros_like(mask), mask.new_zeros(len(rows))
                top_k, teacher = mask.new_zeros(*mask.shape, 1), mask.new_zeros(*mask.shape, 2)
                outputs[name] = Outputs(none, mask, none, zero, zero, top_k, teacher)
            for name, term in terms(outputs).items():
                found.setdefault(name, []).append(term.weight.detach().double().numpy())
        return {name: np.concatenate(parts) for name, parts in found.items()}


def uploaded(array: np.ndarray, device: torch.device | None) -> Tensor:
    """A copy on the device, which the host doesn't wait for; by pinned memory, as a larger one of ordinary memory is
    waited for."""
    tensor = torch.from_numpy(array)
    if device is not None and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _gathered(values: Ragged | None, rows: np.ndarray, device: torch.device | None) -> Tensor | None:
    """What these rows have at their labels that count, in their order, (K, …)."""
    return None if values is None else uploaded(values.select(rows).compact().flat, device)


@dataclass(frozen=True)
class PassBudget:
    """How much goes through the model at once."""

    slots_per_pass: int
    """≥ 1; 1 = one trial after another."""
    max_tokens: int
    """Padded tokens of one pass; a single row (with dropout: micro-batch) may exceed it."""
    overhead_tokens: int
    """Fixed cost of a pass, in tokens."""


@dataclass(frozen=True)
class StepRows:
    """A slot's examples of one step."""

    slot: int
    table: TokenTable
    rows: np.ndarray
    """Indices into the table, (batch_size,), in the order of the trial's data."""
    rows_per_pass: int | None
    """Rows that stay together and in order; None = any split will do."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slots of equal shape can share a pass."""
        return id(self.table), len(self.rows), self.rows_per_pass or 0


@dataclass(frozen=True)
class MicroPack:
    """What goes through the model at once."""

    slots: list[int]
    table: TokenTable
    rows: np.ndarray = field(repr=False)
    """(S, C) indices into the table."""
    is_whole: bool
    """Whether it can't be split: one example, or one micro-batch, of one slot."""

    @property
    def padded_tokens(self) -> int:
        return self.rows.size * int(self.table.lengths[self.rows].max())


def split_step(steps: Sequence[StepRows], budget: PassBudget) -> Iterator[MicroPack]:
    """The micro-packs of a step. A slot's own ordered parts come in their order."""
    groups: dict[tuple[int, int, int], list[StepRows]] = {}
    for step in steps:
        groups.setdefault(step.shape, []).append(step)
    for group in groups.values():
        num_parts = -(-len(group) // budget.slots_per_pass)
        for part in np.array_split(np.arange(len(group)), num_parts):
            yield from _split_group(group[part[0] : part[-1] + 1], budget)


def _split_group(group: Sequence[StepRows], budget: PassBudget) -> Iterator[MicroPack]:
    table, per_pass = group[0].table, group[0].rows_per_pass
    slots = np.array([step.slot for step in group])
    rows = np.stack([step.rows for step in group])
    lengths = table.lengths[rows]
    if per_pass is None:
        order = np.argsort(-lengths, axis=1, kind="stable")
        rows, lengths = np.take_along_axis(rows, order, 1), np.take_along_axis(lengths, order, 1)
        ends = cheapest_splits(lengths.max(0), len(group), budget)
    else:
        ends = [*range(per_pass, rows.shape[1], per_pass), rows.shape[1]]
    start = 0
    for end in ends:
        longest = lengths[:, start:end].max(1)
        yield from _split_slots(table, slots, rows[:, start:end], longest, budget, keeps_rows=per_pass is not None)
        start = end


def _split_slots(
    table: TokenTable, slots: np.ndarray, rows: np.ndarray, lengths: np.ndarray, budget: PassBudget, *, keeps_rows: bool
) -> Iterator[MicroPack]:
    order = np.argsort(-lengths, kind="stable")
    ends = cheapest_splits(lengths[order], rows.shape[1], budget)
    start = 0
    for end in ends:
        part = np.sort(order[start:end])
        is_whole = len(part) == 1 and (keeps_rows or rows.shape[1] == 1)
        yield MicroPack(slots[part].tolist(), table, rows[part], is_whole)
        start = end


def split_shared(table: TokenTable, num_slots: int, budget: PassBudget) -> Iterator[np.ndarray]:
    """All examples of a table, in parts that go through the model once for each of num_slots."""
    order = np.argsort(-table.lengths, kind="stable")
    start = 0
    for end in cheapest_splits(table.lengths[order], num_slots, budget):
        yield order[start:end]
        start = end


def cheapest_splits(lengths: np.ndarray, width: int, budget: PassBudget) -> list[int]:
    """Where to end the parts of a descending sequence of lengths: a part of k items costs overhead + k · width · its
    first length. Returns the ends, the last being len(lengths)."""
    count = len(lengths)
    if count == 1 or (lengths[0] == lengths[-1] and count * width * lengths[0] <= budget.max_tokens):
        return [count]
    best = np.full(count + 1, np.inf)
    best[0] = 0
    came_from = np.zeros(count + 1, dtype=np.int64)
    items = np.arange(1, count + 1)
    for start in range(count):
        size = int(lengths[start]) * width
        end = start + max(1, min(count - start, budget.max_tokens // size))
        costs = best[start] + budget.overhead_tokens + size * items[: end - start]
        better = np.flatnonzero(costs < best[start + 1 : end + 1]) + start + 1
        best[better], came_from[better] = costs[better - start - 1], start
    ends = [count]
    while came_from[ends[-1]]:
        ends.append(int(came_from[ends[-1]]))
    return ends[::-1]
