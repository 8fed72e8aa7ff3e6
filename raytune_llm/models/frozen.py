"""What frozen models add to examples, once, before training: a reference's log-probabilities, a teacher's likeliest
tokens, its hidden states.

They run on the student's own token sequences, so that every value belongs to one of its labels. All trials and steps
share the values, and no second model is kept alongside the one that is trained. Models run without gradients, in eval
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from raytune_llm.data.examples import IGNORED, Example, TeacherTopK, TokenSequence
from raytune_llm.data.tables.example_table import ExampleTable
from raytune_llm.models.batches import run_batches
from raytune_llm.models.forward import inference, label_logits, label_states, outputs, row_chunks

Read = Callable[[list[TokenSequence]], Iterable[Any]]
"""One forward pass over a batch: of each sequence, the value of the field that is filled in."""


def with_references(model: Any, examples: Sequence[Example], *, pad_id: int, batch_size: int) -> ExampleTable:
    """The examples, each sequence with its log p(labels) under `model`, nats."""

    def read(sequences: list[TokenSequence]) -> list[Any]:
        found = outputs(model, sequences, pad_id=pad_id)
        return found.logprobs.sum(-1).tolist()

    return _filled_in(model, examples, "reference", read, batch_size)


def with_teacher_top_k(
    model: Any, examples: Sequence[Example], *, top_k: int, vocabulary: int, pad_id: int, batch_size: int
) -> ExampleTable:
    """The examples, each sequence with the teacher's top_k likeliest tokens, or all of the vocabulary's."""

    def read(sequences: list[TokenSequence]) -> list[Any]:
        logits, labels = label_logits(model, sequences, pad_id=pad_id)
        ids, logprobs = _likeliest(logits, min(top_k, vocabulary), vocabulary)
        return [TeacherTopK(ids[rows], logprobs[rows]) for rows in _rows(labels)]

    return _filled_in(model, examples, "teacher", read, batch_size)


def with_features(
    model: Any, examples: Sequence[Example], *, layers: Sequence[int], pad_id: int, batch_size: int
) -> ExampleTable:
    """The examples, each sequence with the hidden states of the layers."""

    def read(sequences: list[TokenSequence]) -> list[Any]:
        _, labels, states = label_states(model, sequences, pad_id=pad_id, layers=layers)
        kept = torch.stack(states, 1).float().cpu().numpy().astype(np.float32)
        return [kept[rows] for rows in _rows(labels)]

    return _filled_in(model, examples, "features", read, batch_size)


def _filled_in(model: Any, examples: Sequence[Example], field: str, read: Read, batch_size: int) -> ExampleTable:
    """The examples with the field of TokenSequence that `read` gives of each of their sequences; sequences of like
    lengths share a batch."""
    table = ExampleTable.of(examples)
    columns = list(table.columns.values())
    lengths = [column.ids.lengths + column.label_lengths for column in columns]
    values: list[list[Any]] = [[None] * len(table) for _ in columns]

    def fill_in(batch: list[int]) -> None:
        places = [divmod(place, len(columns)) for place in batch]
        for (row, k), value in zip(places, read([columns[k].sequence(row) for row, k in places]), strict=True):
            values[k][row] = value

    with inference(model):
        run_batches(np.ravel(lengths, order="F").tolist(), batch_size, fill_in)
    for name, found in zip(table.names, values, strict=True):
        table = table.with_field(name, field, found)
    return table


def _rows(labels: torch.Tensor) -> list[slice]:
    """Each sequence's part of the K rows that belong to its labels that count; labels (B, T)."""
    ends = np.cumsum((labels != IGNORED).sum(-1).cpu().numpy())
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _likeliest(logits: torch.Tensor, count: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (K, count) of the likeliest tokens, their log-probabilities and the others' together, (K, count + 1)."""
    ids, logprobs = np.empty((len(logits), count), np.int32), np.empty((len(logits), count + 1), np.float32)
    for rows, part in row_chunks(logits):
        every = part.double().log_softmax(-1)
        top = every[:, :vocabulary].topk(count, dim=-1)
        rest = every.scatter_(-1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
        ids[rows], logprobs[rows] = top.indices.cpu().numpy(), torch.cat([top.values, rest], -1).cpu().numpy()
    return ids, logprobs
