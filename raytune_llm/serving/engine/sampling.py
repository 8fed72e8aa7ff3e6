"""Sampling the next tokens of answers that decode together from their logits.

Every answer has its own random numbers, and its sample depends only on them and on its own logits: the inverse of the
cumulative distribution at one uniform number. top_p keeps the likeliest tokens that together reach it (nucleus
sampling, Holtzman et al., 2020, arXiv 1904.09751). Settings of the base's generation config that also apply to greedy
decoding (repetition penalty, suppressed tokens …) are applied by transformers' own logits processors, one answer at a
time; its sampling settings (top_k, min_p …) are ignored in favour of the request's parameters.

Shape letters: B answers, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from raytune_llm.compat import logits_processors
from raytune_llm.serving.engine.base import Sampling, TokenLogprob, TopToken
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


class SamplingState:
    """One answer's sampling parameters and its random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.temperature, self.top_p = sampling.temperature, sampling.top_p
        self.num_logprobs = sampling.num_logprobs
        # random.Random takes the absolute value of a negative seed
        self._random = random.Random() if sampling.seed is None else random.Random(sampling.seed % 2**64)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def uniform(self) -> float:
        """The next number, 0 ≤ u < 1."""
        return self._random.random()


class Sampler:
    """Samples for a fixed set of answers, in order; rebuilt when the set changes."""

    def __init__(self, states: Sequence[SamplingState], device: torch.device) -> None:
        self._states = states
        sampled = [i for i, state in enumerate(states) if not state.is_greedy]
        self._whole = _SampledRows([i for i in sampled if states[i].top_p >= 1], states, device)
        self._nucleus = _SampledRows([i for i in sampled if states[i].top_p < 1], states, device)
        wanted = [state.num_logprobs for state in states if state.num_logprobs is not None]
        self._num_top = max(wanted, default=None)

    def __call__(self, scores: Tensor) -> Tensor:
        """Tokens, (B,), of scores (B, V); -1 where a row has no finite maximum."""
        largest, tokens = scores.max(-1)
        if self._whole.rows:
            cumulative = self._whole.probabilities(scores).cumsum(-1)
            tokens[self._whole.index] = self._whole.pick(cumulative)[:, 0]
        if self._nucleus.rows:
            ordered, order = self._nucleus.probabilities(scores).sort(dim=-1, descending=True, stable=True)
            cumulative = ordered.cumsum(-1)
            kept = (cumulative - ordered < self._nucleus.top_p).sum(-1, keepdim=True)
            mass = cumulative.gather(-1, kept - 1)
            place = self._nucleus.pick(cumulative.minimum(mass))
            tokens[self._nucleus.index] = order.gather(-1, place.minimum(kept - 1))[:, 0]
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


class _SampledRows:
    """The rows that are sampled in the same way."""

    def __init__(self, rows: list[int], states: Sequence[SamplingState], device: torch.device) -> None:
        self.rows = rows
        self.index = torch.tensor(rows, dtype=torch.long, device=device)
        self._states = [states[row] for row in rows]
        temperatures = [state.temperature for state in self._states]
        self._temperature = torch.tensor(temperatures, dtype=torch.float64, device=device)[:, None]
        top_ps = [state.top_p for state in self._states]
        self.top_p = torch.tensor(top_ps, dtype=torch.float64, device=device)[:, None]

    def probabilities(self, scores: Tensor) -> Tensor:
        return (scores[self.index].double() / self._temperature).softmax(-1)

    def pick(self, cumulative: Tensor) -> Tensor:
        """Places, (rows, 1), where the cumulative weights (rows, V) first exceed u times their total."""
        uniform = torch.tensor([state.uniform() for state in self._states], dtype=torch.float64)[:, None]
        place = torch.searchsorted(cumulative, uniform.to(cumulative.device) * cumulative[:, -1:], right=True)
        return place.clamp(max=cumulative.shape[-1] - 1)


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
        config = generation_config(model, sampling.max_tokens, stop_ids)
        config.max_length = len(prompt) + sampling.max_tokens
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


def generation_config(model: PreTrainedModel, max_tokens: int, stop_ids: Sequence[int]) -> GenerationConfig:
    """The base's generation config with the fields replaced that a request decides."""
    config = copy.deepcopy(model.generation_config)
    config.update(
        **RESET,
        num_beams=1,
        eos_token_id=list(stop_ids),
        max_length=None,
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
    )
    return config
