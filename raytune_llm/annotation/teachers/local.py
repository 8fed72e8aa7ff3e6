"""Teachers whose weights are here: a base, or a version of the registry; loaded once in each actor, asked in batches.

Stop texts are looked for after an answer is complete, so they save no time; max_new_tokens does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.annotation.teachers.base import Client, Request, Response, Sampling, Secret, Workers
from raytune_llm.data.records import Message, Text
from raytune_llm.data.tokens import Tokens
from raytune_llm.models.base import Base


@dataclass(frozen=True, kw_only=True)
class LocalTeacher:
    """A pretrained model, causal or encoder-decoder."""

    model: Base
    chat: bool
    """Whether the prompt is sent as a user's turn in the model's chat template, else as plain text."""
    workers: Workers

    is_present = True

    @property
    def name(self) -> str:
        return self.model.name_or_path

    def identity(self, registry_dir: str) -> dict[str, Any]:
        facts = self.model.facts
        return {"weights": facts.revision_hash, "dtype": self.model.dtype.value, "chat": self.chat}

    def credential(self) -> Secret | None:
        return None

    def open(self, registry_dir: str, credential: Secret | None, use_gpu: bool) -> Client:
        return _asker(self.model, None, self.chat, use_gpu)


def _asker(base: Base, folder: str | None, chat: bool, use_gpu: bool) -> Client:
    from raytune_llm.models.loading import load_model

    facts = base.facts
    tokens = Tokens(base.tokenizer(), max_tokens=facts.max_tokens(None), is_encoder_decoder=facts.is_encoder_decoder)
    model = load_model(base, folder, use_gpu=use_gpu)

    def prompt_of(ask: Request) -> Text:
        return (Message("user", ask.prompt),) if chat else ask.prompt

    def answer(asks: Sequence[Request], sampling: Sampling) -> list[Response]:
        prompts = [tokens.prompt(prompt_of(ask), max_new_tokens=sampling.max_new_tokens) for ask in asks]
        whole = [len(tokens.prompt(prompt_of(ask))) for ask in asks]
        texts = _texts(model, tokens, prompts, sampling, seed=sampling.seed + sum(ask.sample for ask in asks))
        lengths = [len(tokens.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        return [
            Response(text, len(prompt), length, cost_usd=0.0, is_cut=len(prompt) < full)
            for text, prompt, length, full in zip(texts, prompts, lengths, whole, strict=True)
        ]

    return answer


def _texts(model: Any, tokens: Tokens, prompts: list[list[int]], sampling: Sampling, *, seed: int) -> list[str]:
    """The model's first choices at temperature 0, else draws."""
    from raytune_llm.evaluation.generate import generate, sample

    stop_ids, most = tokens.stop_ids(), sampling.max_new_tokens
    if sampling.temperature == 0:
        return generate(
            model, tokens.tokenizer, prompts, max_new_tokens=most, stop_ids=stop_ids, batch_size=len(prompts)
        )
    rows = sample(
        model,
        prompts,
        max_new_tokens=most,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop_ids=stop_ids,
        pad_id=tokens.tokenizer.pad_token_id,
        batch_size=len(prompts),
        seed=seed,
    )
    return [text.strip() for text in tokens.tokenizer.batch_decode(rows, skip_special_tokens=True)]
