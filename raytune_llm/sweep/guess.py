"""A rehearsal guessed from sizes alone, for where none is made: the same numbers, by the arithmetic of models/cost.py
and what processes and layers take at least. Earlier trainings correct it (experience.py)."""

from __future__ import annotations

from raytune_llm.models.base import Facts
from raytune_llm.models.cost import PADDED, training_seconds
from raytune_llm.training.rehearsal import Answered, Rehearsal

PROCESS_SECONDS = 8.0
"""A process's start, with torch's and transformers' imports."""
BYTES_PER_SECOND = 1e9
"""Of reading weights."""
LAYER_SECONDS = 5e-3
"""Of a layer in a step at least, whatever its size, on a CPU; a GPU takes a fifth."""
FORWARD = 1 / 3
"""Of a step, what an evaluation of the same examples takes."""


def guess(
    facts: Facts,
    *,
    batch_size: int,
    num_eval: int,
    tokens_per_example: float,
    answer_tokens: float,
    use_gpu: bool,
    device: str,
) -> Rehearsal:
    """What one trial on a base takes. `answer_tokens`: the longest answer."""
    least = facts.num_layers * LAYER_SECONDS * (0.2 if use_gpu else 1.0)
    tokens = batch_size * tokens_per_example * PADDED
    step = least + training_seconds(facts.num_parameters, tokens, has_gpu=use_gpu)
    each = FORWARD * step / batch_size
    load_seconds = 2 * facts.num_parameters / BYTES_PER_SECOND
    return Rehearsal(
        source="guessed",
        device=device,
        start_seconds=PROCESS_SECONDS + load_seconds,
        load_seconds=load_seconds,
        steps={1: step},
        evaluations={1: num_eval * each},
        checkpoint_seconds=0.0,
        answering=None,
        comparing=Answered(read_seconds=each, token_seconds=each / 4, num_tokens=answer_tokens),
        capacity=1,
        memory=None,
        spent_seconds=0.0,
    )
