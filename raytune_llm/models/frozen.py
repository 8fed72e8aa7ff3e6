"""What a teacher says of examples: its likeliest tokens in every label's place, once, before training.

It runs on the student's own token sequences, so both speak of the same places. All trials and steps share what it said,
and no second model is kept beside the one that is trained.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raytune_llm.data.examples import IGNORED, Example, TeacherTopK
from raytune_llm.models.forward import batches, inference, label_logits, label_states, outputs


def with_teacher_top_k(
    model: Any, examples: Sequence[Example], *, num_candidates: int, vocabulary: int, pad_id: int, batch_size: int
) -> list[Example]:
    """The examples, each sequence with the teacher's candidates, num_candidates or all of the vocabulary's tokens.
    Runs without gradients, in eval mode."""
    places = [(index, name) for index, example in enumerate(examples) for name in example]
    lengths = [len(examples[i][name].input_ids) + len(examples[i][name].labels) for i, name in places]
    found = [dict(example) for example in examples]
    with inference(model):
        for batch in batches(lengths, batch_size) if places else []:
            chosen = [places[place] for place in batch]
            logits, labels = label_logits(model, [examples[i][name] for i, name in chosen], pad_id=pad_id)
            ids, logprobs = _likeliest(logits, min(num_candidates, vocabulary), vocabulary)
            ends = np.cumsum((labels != IGNORED).sum(-1).cpu().numpy())
            for (i, name), start, end in zip(chosen, [0, *ends[:-1]], ends, strict=True):
                said = TeacherTopK(ids[start:end], logprobs[start:end])
                found[i][name] = replace(examples[i][name], teacher=said)
    return found


def _likeliest(logits: torch.Tensor, count: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (K, count) of the likeliest tokens, their log-probabilities and the others' together, (K, count + 1)."""
    logprobs = logits.double().log_softmax(-1)
    top = logprobs[:, :vocabulary].topk(count, dim=-1)
    rest = logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    both = torch.cat([top.values, rest], -1)
    return top.indices.cpu().numpy().astype(np.int32), both.cpu().numpy().astype(np.float32)


def with_features(
    model: Any, examples: Sequence[Example], *, layers: Sequence[int], pad_id: int, batch_size: int
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


def with_group_members(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Each example with the sequence of `count` others, drawn by the seed, as member1, member2 …: a group that every
    backend keeps whole. Fewer where there are no more others."""
    generator = random.Random(seed)
    found: list[Example] = []
    for index, example in enumerate(examples):
        others = generator.sample(range(len(examples) - 1), min(count, len(examples) - 1))
        members = [examples[other + (other >= index)] for other in others]
        found.append(example | {f"member{i + 1}": next(iter(member.values())) for i, member in enumerate(members)})
    return found


def with_references(model: Any, examples: Sequence[Example], *, pad_id: int, batch_size: int) -> list[Example]:
    """The examples, each sequence with its log p(labels) under `model`, nats. Runs without gradients, in eval mode."""
    if not examples:
        return []
    places = [(index, name) for index, example in enumerate(examples) for name in example]
    lengths = [len(examples[i][name].input_ids) + len(examples[i][name].labels) for i, name in places]
    found = [dict(example) for example in examples]
    with inference(model):
        for batch in batches(lengths, batch_size):
            chosen = [places[place] for place in batch]
            said = outputs(model, [examples[i][name] for i, name in chosen], pad_id=pad_id)
            for (i, name), total in zip(chosen, said.logprobs.sum(-1).tolist(), strict=True):
                found[i][name] = replace(examples[i][name], reference=total)
    return found
