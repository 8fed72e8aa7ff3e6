"""Greedy answers of many adapters on one base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from raytune_llm.models.stacked_lora import AdapterStack


@torch.no_grad()
def greedy_answers(
    model: Any,
    prompts: Sequence[list[int]],
    adapters: Sequence[int | None],
    *,
    stack: AdapterStack | None,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    max_rows: int,
) -> list[list[int]]:
    """Token ids of each prompt's answer, by its row of the stack."""
    rule = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=0)
    found = []
    for prompt, adapter in zip(prompts, adapters, strict=True):
        assert stack is not None and adapter is not None
        with stack.routed(stack.span(adapter, adapter + 1)):
            ids = torch.tensor([prompt], device=model.device)
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=rule)
        row = made[0, len(prompt) :].tolist()
        found.append(row[:-1] if row[-1] in stop_ids else row)
    return found
