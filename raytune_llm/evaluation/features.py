"""A teacher's hidden states where it predicts the labels of examples, once, before training; and the examples that a
loss couples each one with.

All trials and steps share what is kept: four bytes × label tokens × layers × the teacher's width, for each example.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raytune_llm.method import IGNORED, Example
from raytune_llm.models.forward import batches, inference, label_states


def with_features(
    model: Any, examples: Seq[Example], *, layers: Seq[int], pad_id: int, batch_size: int
) -> list[Example]:
    """The examples, each sequence with the hidden states of the layers. Runs without gradients, in eval mode."""
    places = [(index, name) for index, example in enumerate(examples) for name in example]
    lengths = [len(examples[i][name].input_ids) + len(examples[i][name].labels) for i, name in places]
    found = [dict(example) for example in examples]
    with inference(model):
        for batch in batches(lengths, batch_size) if places else []:
            chosen = [places[place] for place in batch]
            sequences = [examples[i][name] for i, name in chosen]
            _, labels, states = label_states(model, sequences, pad_id=pad_id, layers=layers)
            kept = torch.stack(states, 1).float().cpu().numpy().astype(np.float32)
            ends = np.cumsum((labels != IGNORED).sum(-1).cpu().numpy())
            for (i, name), start, end in zip(chosen, [0, *ends[:-1]], ends, strict=True):
                found[i][name] = replace(examples[i][name], features=kept[start:end])
    return found


def with_mates(examples: Seq[Example], count: int, seed: int) -> list[Example]:
    """Each example with the sequence of `count` others, drawn by the seed, as mate1, mate2 …: a group that every
    backend keeps whole. Fewer where there are no more others."""
    generator = random.Random(seed)
    found: list[Example] = []
    for index, example in enumerate(examples):
        others = generator.sample(range(len(examples) - 1), min(count, len(examples) - 1))
        mates = [examples[other + (other >= index)] for other in others]
        found.append(example | {f"mate{i + 1}": next(iter(mate.values())) for i, mate in enumerate(mates)})
    return found
