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

FEWEST, FEW_TOKENS, WHOLE_ANSWERS = 2, 6, 8
SHORT_TOKENS = 8
"""Of a prompt that is written on to time writing: a token of a row costs little more after a long one."""
SHARE_READING = 0.25
"""Of the limit, for reading prompts."""

Answer = Callable[[Sequence[list[int]], int, Sequence[int]], int]
"""Answers prompts with at most so many tokens each, up to any of the stop ids; returns how many tokens it wrote."""


def rehearse_answers(
    model: Any, tokenizer: Any, asked: Asked, *, stack: AdapterStack | None, limit: float
) -> Answered | None:
    """What answering takes, within about `limit` seconds; None without prompts. With a stack, every other
    prompt is answered through its first row, but those by which lengths are measured."""
    if not asked.prompts:
        return None
    with threads(asked.threads if next(model.parameters()).device.type == "cpu" else None):
        return measured(_answer_by(model, tokenizer, asked, stack), asked, limit)


def measured(answer: Answer, asked: Asked, limit: float) -> Answered:
    """The seconds of an answer's parts, and how long a few whole answers are; as many tokens as are allowed where that
    would take too long."""
    few = asked.prompts[:FEWEST]
    timed(answer, few, 1)
    each = timed(answer, few, 1) / len(few)
    prompts = asked.prompts[: max(FEWEST, int(SHARE_READING * limit / each))]
    read_seconds = timed(answer, prompts, 1) / len(prompts)
    rows = [prompt[-SHORT_TOKENS:] for prompt in asked.prompts]
    tokens = min(FEW_TOKENS, asked.max_new_tokens)
    writing = timed(answer, rows, tokens) - timed(answer, rows, 1)
    token_seconds = max(0.0, writing) / (len(rows) * max(1, tokens - 1))
    whole, num_tokens = asked.prompts[:WHOLE_ANSWERS], float(asked.max_new_tokens)
    started, steps = time.monotonic(), 1
    while steps < asked.max_new_tokens and time.monotonic() - started < limit / 4:
        steps = min(4 * steps, asked.max_new_tokens)
        num_tokens = answer(whole, steps, asked.stop_ids) / len(whole)
    if num_tokens > steps / 2:
        num_tokens = float(asked.max_new_tokens)
    return Answered(read_seconds=read_seconds, token_seconds=token_seconds, num_tokens=num_tokens)


def timed(answer: Answer, prompts: Sequence[list[int]], num_tokens: int) -> float:
    """Seconds of answers of exactly so many tokens."""
    started = time.monotonic()
    answer(prompts, num_tokens, ())
    return time.monotonic() - started


def _answer_by(model: Any, tokenizer: Any, asked: Asked, stack: AdapterStack | None) -> Answer:
    def together(prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: Sequence[int]) -> int:
        slots = [None] if stack is None or stop_ids else [None, 0]
        found = greedy_answers(
            model,
            prompts,
            [slots[place % len(slots)] for place in range(len(prompts))],
            stack=stack,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            max_rows=2 * asked.batch_size,  # a tuned model and its base
        )
        return sum(map(len, found))

    def alone(prompts: Sequence[list[int]], max_new_tokens: int, stop_ids: Sequence[int]) -> int:
        texts = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            batch_size=asked.batch_size,
        )
        return sum(len(tokenizer(text)["input_ids"]) for text in texts)

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
