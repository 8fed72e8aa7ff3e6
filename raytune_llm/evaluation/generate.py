"""Answers: the model's first choice at every step, or samples, until a stop token or max_new_tokens.

Sampling defaults, penalties and forced tokens that a checkpoint's generation_config.json brings are ignored, so that
base and tuned model are compared by the same rule. Leaves out: beams, serving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from raytune_llm.errors import InputError
from raytune_llm.models.batches import run_batches
from raytune_llm.models.forward import decoder_start, inference, unwrapped


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
) -> list[str]:
    """The model's answer to each prompt, in their order: text without special tokens and surrounding white space.

    Args:
        prompts: token ids, as the model was trained to see them before an answer.
        stop_ids: tokens that end an answer; they and what follows are not part of it.

    Raises:
        InputError: max_new_tokens < 1, or a prompt too long for the base's context to hold both.
        ValueError: a prompt is empty.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = stop_ids[0] if stop_ids else 0
    limits = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    rows = answer_ids(model, prompts, stop_ids=stop_ids, pad_id=pad_id, **limits)
    return [answer_text(tokenizer, _until(row, stop_ids)) for row in rows]


def answer_ids(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
) -> list[list[int]]:
    """The same answers as token ids, the one that ended each included. Raises as `generate` does."""
    check_prompts(prompts, max_new_tokens, model.config)
    rule = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
    )
    rows = _rows(model, prompts, rule, batch_size)
    return [row[: len(_until(row, stop_ids)) + 1] for row in rows]


def answer_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, without special ones and surrounding white space."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text.strip()


def sample(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    seed: int,
    top_p: float = 1.0,
) -> list[list[int]]:
    """A completion of each prompt, drawn from the whole distribution, or from the likeliest tokens that together have
    the probability top_p: token ids, the one that ended it included.

    The same seed, prompts and batch size give the same draws, as long as memory holds the batches; the process's own
    random streams are left as they were. Raises InputError as `generate` does.
    """
    check_prompts(prompts, max_new_tokens, model.config)
    rule = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = _rows(model, prompts, rule, batch_size)
    return [row[: len(_until(row, stop_ids)) + 1] for row in rows]


def _rows(model: Any, prompts: Sequence[list[int]], rule: GenerationConfig, batch_size: int) -> list[list[int]]:
    """The completion of each prompt by the rule, in their order, padded after its end."""
    found: list[list[int]] = [[] for _ in prompts]

    def answer(batch: list[int]) -> None:
        for i, row in zip(batch, _new_tokens(model, [prompts[i] for i in batch], rule), strict=True):
            found[i] = row

    with inference(model), _plain(model) as defaults:
        rule.update(**defaults)
        run_batches([len(prompt) for prompt in prompts], batch_size, answer)
    return found


def _new_tokens(model: Any, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """The completion of each prompt. Causal prompts are padded on the left, an encoder's on the right."""
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    is_encoder_decoder = bool(model.config.is_encoder_decoder)

    def padded(row: list[int], value: int) -> list[int]:
        padding = [value] * (longest - len(row))
        return row + padding if is_encoder_decoder else padding + row

    ids = torch.tensor([padded(prompt, config.pad_token_id) for prompt in prompts], device=device)
    mask = torch.tensor([padded([1] * len(prompt), 0) for prompt in prompts], device=device)
    made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return made[:, 1 if is_encoder_decoder else longest :].tolist()


@contextmanager
def _plain(model: Any) -> Iterator[dict[str, int]]:
    """The model without generation defaults of its own; gives the decoder's first token where there is one."""
    owners = [
        owner for owner in {id(m): m for m in (model, unwrapped(model))}.values() if "generation_config" in vars(owner)
    ]
    found = [owner.generation_config for owner in owners]
    start = {"decoder_start_token_id": decoder_start(model)} if model.config.is_encoder_decoder else {}
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield start
    finally:
        for owner, config in zip(owners, found, strict=True):
            owner.generation_config = config


def _until(row: list[int], stop_ids: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(row) if token in stop_ids), len(row))
    return row[:end]


def check_prompts(prompts: Sequence[list[int]], max_new_tokens: int, config: Any) -> None:
    """Raises InputError and ValueError as `generate` does; config: the model's."""
    if max_new_tokens < 1:
        raise InputError(f"evaluation.max_new_tokens={max_new_tokens} is not allowed; allowed: ≥ 1")
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    room = None if context is None else context if config.is_encoder_decoder else context - max_new_tokens
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(
                f"prompt {row} has no tokens; give it at least the tokenizer's beginning-of-sequence token"
            )
        if room is not None and len(prompt) > room:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens, but the base's context of {context} leaves {max(room, 0)} "
                f"with evaluation.max_new_tokens={max_new_tokens}; cut the prompt or lower evaluation.max_new_tokens"
            )
