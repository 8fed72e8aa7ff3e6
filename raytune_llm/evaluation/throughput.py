"""Size, speed and quality of two models: a student next to its teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from raytune_llm.evaluation.generate import generate
from raytune_llm.evaluation.metrics import exact_match

MOST_ANSWERED = 64
"""Prompts answered at once, by which speed is measured."""


def side_by_side(
    models: Mapping[str, Any],
    tokenizer: Any,
    prompts: Sequence[list[int]],
    references: Sequence[str],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[list[str]]:
    """A table with a row a model: parameters; memory of its weights, and on a GPU the most that it holds, weights
    included, while it answers; answer tokens per second; exact answers of the first prompts."""
    shown, wanted = prompts[:MOST_ANSWERED], references[:MOST_ANSWERED]
    on_gpu = all(model.device.type == "cuda" for model in models.values())
    peak = ["peak memory, MB"] if on_gpu else []
    rows = [["", "parameters", "weights, MB", *peak, "answer tokens per second", f"exact answers of {len(shown)}"]]
    for name, model in models.items():
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        others = torch.cuda.memory_allocated() - weights if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        texts = generate(
            model, tokenizer, shown, max_new_tokens=max_new_tokens, stop_ids=stop_ids, batch_size=len(shown)
        )
        seconds = time.perf_counter() - started
        num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
        right = int(exact_match(wanted, texts).sum())
        size = sum(parameter.numel() for parameter in model.parameters())
        peak = [f"{(torch.cuda.max_memory_allocated() - others) / 1e6:.1f}"] if on_gpu else []
        rows.append([name, f"{size:,}", f"{weights / 1e6:.1f}", *peak, f"{num_tokens / seconds:.0f}", str(right)])
    return rows
