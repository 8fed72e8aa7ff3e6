"""Sampling the next tokens of answers that decode together from their logits.

Every answer has its own random numbers, and its sample depends only on them and on its own logits. These are first
changed by bias, penalties and grammar (logit_changes.py); then tokens are drawn by temperature, top_k, top_p and min_p
(sampled_rows.py).

Settings of the base's generation config that also apply to greedy decoding (repetition penalty, suppressed tokens …)
are applied by transformers' own logits processors, one answer at a time, before all of these; its sampling settings
(top_k, min_p …) are ignored in favour of the request's parameters.

Shape letters: B answers, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from raytune_llm.compat import logits_processors
from raytune_llm.errors import InputError
from raytune_llm.serving.engine.base import Sampling, TokenLogprob, TopToken
from raytune_llm.serving.engine.grammar import Grammar
from raytune_llm.serving.engine.logit_changes import AnswerSoFar, LogitChanges
from raytune_llm.serving.engine.sampled_rows import SampledRows
from raytune_llm.serving.engine.token_bytes import data_of_one, decode_one

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

RESET = {
    name: None
    for name in (
        "top_k",
        "top_h",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "guidance_scale",
        "watermarking_config",
    )
}

AGAINST_GRAMMARS = {
    name: None for name in ("forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens")
}


class SamplingState:
    """One answer's sampling parameters, its random numbers, and what its penalties and its grammar depend on."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = (), grammar: Grammar | None = None) -> None:
        """prompt: the decoder's tokens so far; grammar: of sampling.json_schema, at its beginning."""
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.top_k, self.min_p = sampling.top_k, sampling.min_p
        self.answer = AnswerSoFar(sampling, prompt, grammar)
        self.is_tracked = self.answer.is_tracked
        """Whether `add` must be called."""
        self.num_logprobs = sampling.num_logprobs
        # random.Random takes the absolute value of a negative seed
        self._random = random.Random() if sampling.seed is None else random.Random(sampling.seed % 2**64)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def error(self) -> InputError | None:
        """Why the sampler has no token for it, where that isn't its logits."""
        return None if self.answer.grammar is None else self.answer.grammar.error

    def add(self, token: int) -> None:
        """The token that was sampled for it; to be called before the next one is sampled."""
        self.answer.add(token)

    def uniform(self) -> float:
        """The next number, 0 ≤ u < 1."""
        return self._random.random()


class Sampler:
    """Samples for a fixed set of answers, in order; rebuilt when the set changes."""

    def __init__(self, states: Sequence[SamplingState], device: torch.device) -> None:
        self._states = states
        self._changes = LogitChanges([state.answer for state in states], device)
        sampled = [i for i, state in enumerate(states) if not state.is_greedy]
        self._whole, self._nucleus = (
            SampledRows(rows, [states[i] for i in rows], device)
            for rows in ([i for i in sampled if states[i].top_p >= 1], [i for i in sampled if states[i].top_p < 1])
        )
        wanted = [state.num_logprobs for state in states if state.num_logprobs is not None]
        self._num_top = max(wanted, default=None)

    def __call__(self, scores: Tensor) -> Tensor:
        """Tokens, (B,), of scores (B, V); -1 where a row has no finite maximum."""
        if not self._changes.is_empty:
            scores = self._changes(scores)
        largest, tokens = scores.max(-1)
        if len(self._whole):
            tokens[self._whole.index] = self._whole.sample(scores)
        if len(self._nucleus):
            tokens[self._nucleus.index] = self._nucleus.sample_nucleus(scores)
        return tokens.masked_fill_(~largest.isfinite(), -1)

    def logprobs(self, logits: Tensor, tokens: Tensor, tokenizers: Sequence[Any]) -> list[TokenLogprob | None]:
        """The log-probabilities of these tokens for each answer that requested them."""
        if self._num_top is None:
            return [None] * len(self._states)
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])[:, 0].tolist()
        top = logprobs.topk(min(self._num_top, logprobs.shape[-1]))
        values, indices = top.values.tolist(), top.indices.tolist()
        found: list[TokenLogprob | None] = []
        for row, (state, token) in enumerate(zip(self._states, tokens.tolist(), strict=True)):
            if state.num_logprobs is None or token < 0:
                found.append(None)
                continue
            likeliest = tuple(
                TopToken(decode_one(tokenizers[row], index), value, data_of_one(tokenizers[row], index))
                for index, value in zip(indices[row][: state.num_logprobs], values[row], strict=False)
            )
            text, data = decode_one(tokenizers[row], token), data_of_one(tokenizers[row], token)
            found.append(TokenLogprob(text, chosen[row], likeliest, data))
        return found


class LogitsProcessors:
    """The logits processors of the base's generation config for one answer; most bases have none."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        stop_ids: Sequence[int],
        prompt: list[int],
        encoder: Tensor | None,
    ) -> None:
        """`prompt`: the decoder's tokens so far; `encoder`: the encoder's input ids (1, T), None for causal bases."""
        config = generation_config(model, sampling, stop_ids)
        config.max_length = len(prompt) + max(1, sampling.max_tokens)
        self._processors: Any = logits_processors(model, config, prompt_length=len(prompt), encoder_ids=encoder)
        self._seen = torch.tensor([prompt], device=model.device)

    @property
    def is_empty(self) -> bool:
        return not self._processors

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (1, V) of logits (1, V)."""
        return self._processors(self._seen, logits)

    def add(self, token: int) -> None:
        """Append the token that was sampled."""
        self._seen = torch.cat([self._seen, self._seen.new_tensor([[token]])], dim=-1)


def generation_config(model: PreTrainedModel, sampling: Sampling, stop_ids: Sequence[int]) -> GenerationConfig:
    """The base's generation config with the fields replaced that a request decides, and without those that a grammar
    contradicts."""
    config = copy.deepcopy(model.generation_config)
    replaced = {"repetition_penalty": None} if sampling.repetition_penalty != 1 else {}
    config.update(
        **RESET,
        **(AGAINST_GRAMMARS if sampling.json_schema is not None else {}),
        **replaced,
        num_beams=1,
        eos_token_id=list(stop_ids),
        max_length=None,
        max_new_tokens=max(1, sampling.max_tokens),
        do_sample=False,
        temperature=None,
        top_p=None,
    )
    return config
