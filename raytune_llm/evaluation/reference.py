"""What a reference policy says of examples: log p of each sequence's labels, once, before training.

The reference never changes, so every trial and every step shares these numbers, and no second model is kept beside the
one that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

from raytune_llm.method import Example
from raytune_llm.models.forward import batches, inference, outputs


def with_references(model: Any, examples: Seq[Example], *, pad_id: int, batch_size: int) -> list[Example]:
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
