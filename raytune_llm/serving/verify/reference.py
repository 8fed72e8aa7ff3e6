"""The reference of a parity check: a version and its base in transformers and PEFT, one answer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from raytune_llm.models.forward import decoder_start, unwrapped
from raytune_llm.models.fp32_head import use_fp32_head
from raytune_llm.models.loading import num_adapted_modules
from raytune_llm.serving.engine.base import ServedModel
from raytune_llm.serving.engine.detokenize import decode
from raytune_llm.serving.engine.token_bytes import decode_one

NUM_TOP = 5
"""Tokens compared at each position."""
NUM_KNOWN = 64
"""Tokens of the reference that they are looked up in."""


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer without leading white space, and its log-probabilities."""

    text: str
    tops: list[list[tuple[str, float]]]
    """Text and log p (nats) of the likeliest tokens at each position."""


@dataclass(frozen=True)
class Reference:
    """A version and its base, each in a model of its own."""

    served: ServedModel
    base: Any
    """A transformers model in eval mode."""
    tuned: Any
    """PEFT's model, or the fully tuned one."""

    def __post_init__(self) -> None:
        for model in (self.base, self.tuned):
            use_fp32_head(unwrapped(model))

    @property
    def num_adapted_modules(self) -> int:
        """Modules in which PEFT put the adapter; 0 for a fully tuned model."""
        from peft import PeftModel

        return num_adapted_modules(self.tuned, self.tuned.active_adapter) if isinstance(self.tuned, PeftModel) else 0

    def greedy(self, prompt: list[int], max_tokens: int) -> GreedyAnswer:
        """The answer of transformers' `generate`, its log-probabilities before the logits processors."""
        text, logits = _generated(self.tuned, self.served, prompt, max_tokens)
        return GreedyAnswer(text, [self._known(row[0]) for row in logits])

    def base_difference(self, prompt: list[int]) -> float:
        """Largest difference of version and base in the log-probabilities of the version's likeliest first tokens,
        nats."""
        first, base = first_logprobs(self.tuned, prompt), first_logprobs(self.base, prompt)
        top = first.topk(NUM_TOP)
        return float((top.values - base[top.indices]).abs().max())

    def _known(self, logits: Any) -> list[tuple[str, float]]:
        """Text and log p of the likeliest tokens. logits: (V,)."""
        top = logits.float().log_softmax(-1).topk(min(NUM_KNOWN, len(logits)))
        tokenizer = self.served.tokens.tokenizer
        texts = [decode_one(tokenizer, token) for token in top.indices.tolist()]
        return list(zip(texts, top.values.tolist(), strict=True))


def first_logprobs(model: Any, prompt: list[int]) -> Any:
    """log p of the first answer token, nats, (V,)."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt], device=model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[decoder_start(model)]], device=model.device)
    return model(**inputs).logits[0, -1].float().log_softmax(-1)


def _generated(model: Any, served: ServedModel, prompt: list[int], max_tokens: int) -> tuple[str, Any]:
    """The answer's text, and its raw logits: one (1, V) per generated token."""
    tokenizer: Any = served.tokens.tokenizer
    inputs = torch.tensor([prompt], device=model.device)
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=max_tokens,
        eos_token_id=list(served.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = output.sequences[0].tolist()
    answer = tokens[1:] if model.config.is_encoder_decoder else tokens[len(prompt) :]
    if answer and answer[-1] in served.stop_ids:
        answer.pop()
    return decode(tokenizer, answer).lstrip(), output.logits
