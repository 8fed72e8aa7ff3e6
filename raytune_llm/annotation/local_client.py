"""The client of teachers whose weights are on the cluster: loaded once in each worker, run in batches.

Stop texts are applied after a response is complete, so they save no time; max_new_tokens does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling
from raytune_llm.data.records import Message, Text
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.models.base import Base


def local_client(base: Base, folder: str | None, *, chat: bool, use_gpu: bool) -> Client:
    """Load a base, or the tuned model of a folder or URI on it.

    Args:
        chat: whether prompts become a user's turn in the model's chat template, else plain text.
    """
    from raytune_llm.models.loading import load_model

    facts = base.facts
    tokens = Tokens(base.tokenizer(), max_tokens=facts.max_tokens(None), is_encoder_decoder=facts.is_encoder_decoder)
    model = load_model(base, folder, use_gpu=use_gpu)

    def text_of(request: Request) -> Text:
        return (Message("user", request.prompt),) if chat else request.prompt

    def complete(requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        prompts = [tokens.prompt(text_of(one), max_new_tokens=sampling.max_new_tokens) for one in requests]
        full_lengths = [len(tokens.prompt(text_of(one))) for one in requests]
        seed = sampling.seed + sum(one.sample for one in requests)
        completions = _completions(model, tokens, prompts, sampling, seed=seed)
        lengths = [len(tokens.tokenizer.encode(text, add_special_tokens=False)) for text in completions]
        return [
            Response(text, len(prompt), length, cost_usd=0.0, is_cut=len(prompt) < full_length)
            for text, prompt, length, full_length in zip(completions, prompts, lengths, full_lengths, strict=True)
        ]

    return complete


def _completions(model: Any, tokens: Tokens, prompts: list[list[int]], sampling: Sampling, *, seed: int) -> list[str]:
    """Greedy at temperature 0, else sampled."""
    from raytune_llm.evaluation.generate import generate, sample

    stop_ids, max_new_tokens = tokens.stop_ids(), sampling.max_new_tokens
    if sampling.temperature == 0:
        return generate(
            model, tokens.tokenizer, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, batch_size=len(prompts)
        )
    rows = sample(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_ids=stop_ids,
        pad_id=tokens.tokenizer.pad_token_id,
        batch_size=len(prompts),
        seed=seed,
    )
    return [text.strip() for text in tokens.tokenizer.batch_decode(rows, skip_special_tokens=True)]
