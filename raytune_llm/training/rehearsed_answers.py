"""Greedy answers to a few prompts, timed: what reading a prompt and writing a token takes, and how long answers are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from raytune_llm.evaluation.generate import generate
from raytune_llm.models.decoding.greedy import greedy_answers
from raytune_llm.models.decoding.step import can_batch
from raytune_llm.models.stacked_lora import AdapterStack
from raytune_llm.training.rehearsal import Answered, Asked

FEWEST, FEW_TOKENS, WHOLE_ANSWERS = 2, 8, 8
SHARE_READING = 0.25
"""Of the limit, for reading prompts once; reading them again and writing on takes as long again."""

Answer = Callable[[Sequence[list[int]], int], int]
"""Answers prompts with at most so many tokens each, and returns how many tokens it wrote."""


def rehearse_answers(
    model: Any, tokenizer: Any, asked: Asked, *, stack: AdapterStack | None, limit: float
) -> Answered | None:
    """What answering takes, within about `limit` seconds; None without prompts. With a stack, its first row answers."""
    if not asked.prompts:
        return None
    with threads(asked.threads if next(model.parameters()).device.type == "cpu" else None):
        return measured(_answer_by(model, tokenizer, asked, stack), asked, limit)


def measured(answer: Answer, asked: Asked, limit: float) -> Answered:
    """The seconds of an answer's parts, by answers of one token, of a few, and a few whole ones."""
    few = asked.prompts[:FEWEST]
    answer(few, 1)
    seconds, _ = timed(answer, few, 1)
    fitting = int(SHARE_READING * limit * len(few) / max(seconds, 1e-9))
    prompts = asked.prompts[: max(FEWEST, fitting)]
    reading, first_tokens = timed(answer, prompts, 1)
    writing, tokens = timed(answer, prompts, min(FEW_TOKENS, asked.max_new_tokens))
    read_seconds = reading / len(prompts)
    token_seconds = max(0.0, writing - reading) / max(1, tokens - first_tokens)
    whole, num_tokens = asked.prompts[:WHOLE_ANSWERS], float(asked.max_new_tokens)
    if len(whole) * (read_seconds + num_tokens * token_seconds) <= limit:
        num_tokens = answer(whole, asked.max_new_tokens) / len(whole)
    return Answered(read_seconds=read_seconds, token_seconds=token_seconds, num_tokens=num_tokens)


def timed(answer: Answer, prompts: Sequence[list[int]], max_new_tokens: int) -> tuple[float, int]:
    """Seconds and tokens of answers."""
    started = time.monotonic()
    tokens = answer(prompts, max_new_tokens)
    return time.monotonic() - started, tokens


def _answer_by(model: Any, tokenizer: Any, asked: Asked, stack: AdapterStack | None) -> Answer:
    def together(prompts: Sequence[list[int]], max_new_tokens: int) -> int:
        found = greedy_answers(
            model,
            prompts,
            [None if stack is None else 0] * len(prompts),
            stack=stack,
            stop_ids=asked.stop_ids,
            max_new_tokens=max_new_tokens,
            max_rows=2 * asked.batch_size,  # a tuned model and its base
        )
        return sum(map(len, found))

    def alone(prompts: Sequence[list[int]], max_new_tokens: int) -> int:
        options = {"max_new_tokens": max_new_tokens, "stop_ids": asked.stop_ids, "batch_size": asked.batch_size}
        generate(model, tokenizer, prompts, **options)
        return len(prompts) * max_new_tokens

    return together if can_batch(model) else alone


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's operations on so many threads inside; as many as before with None."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
