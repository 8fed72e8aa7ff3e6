"""How large two models are, how fast they answer and how well: a student beside its teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.metrics import exact_match

MOST_ANSWERED = 64
"""Prompts answered at once, by which speeds are told."""


def side_by_side(
    models: Mapping[str, Any],
    tokenizer: Any,
    prompts: Sequence[list[int]],
    references: Sequence[str],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[list[str]]:
    """A table with a row a model: parameters, answer tokens per second, exact answers of the first prompts."""
    asked, wanted = prompts[:MOST_ANSWERED], references[:MOST_ANSWERED]
    rows = [["", "parameters", "answer tokens per second", f"exact answers of {len(asked)}"]]
    for name, model in models.items():
        started = time.perf_counter()
        texts = generate(
            model, tokenizer, asked, max_new_tokens=max_new_tokens, stop_ids=stop_ids, batch_size=len(asked)
        )
        seconds = time.perf_counter() - started
        num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
        right = int(exact_match(wanted, texts).sum())
        size = sum(parameter.numel() for parameter in model.parameters())
        rows.append([name, f"{size:,}", f"{num_tokens / seconds:.0f}", str(right)])
    return rows
