"""What a teacher says of examples: its likeliest tokens in every label's place, once, before training.

It runs on the student's own token sequences, so both speak of the same places. All trials and steps share what it said,
and no second model is kept beside the one that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raytune_llm.method import IGNORED, Candidates, Example
from raytune_llm.models.forward import batches, inference, label_logits


def with_candidates(
    model: Any, examples: Seq[Example], *, num_candidates: int, vocabulary: int, pad_id: int, batch_size: int
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
                said = Candidates(ids[start:end], logprobs[start:end])
                found[i][name] = replace(examples[i][name], teacher=said)
    return found


def _likeliest(logits: torch.Tensor, count: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (K, count) of the likeliest tokens, their log-probabilities and the others' together, (K, count + 1)."""
    logprobs = logits.double().log_softmax(-1)
    top = logprobs[:, :vocabulary].topk(count, dim=-1)
    rest = logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1, keepdim=True)
    both = torch.cat([top.values, rest], -1)
    return top.indices.cpu().numpy().astype(np.int32), both.cpu().numpy().astype(np.float32)
