"""Sampling the next tokens of answers that decode together from their logits.

Every answer has its own random numbers, and its sample depends only on them and on its own logits: the inverse of the
cumulative distribution at one uniform number. In transformers' order, the logits are divided by the temperature; top_k
keeps the likeliest tokens, with all that are as likely as the last of them; top_p keeps of those the likeliest that
together reach it (nucleus sampling, Holtzman et al., 2020, arXiv 1904.09751); min_p keeps those likely enough against
the likeliest (Nguyen et al., 2024, arXiv 2407.01082). Bias, penalties and grammars come before: logit_changes.py.

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
        self._whole = _SampledRows([i for i in sampled if states[i].top_p >= 1], states, device)
        self._nucleus = _SampledRows([i for i in sampled if states[i].top_p < 1], states, device)
        wanted = [state.num_logprobs for state in states if state.num_logprobs is not None]
        self._num_top = max(wanted, default=None)

    def __call__(self, scores: Tensor) -> Tensor:
        """Tokens, (B,), of scores (B, V); -1 where a row has no finite maximum."""
        if not self._changes.is_empty:
            scores = self._changes(scores)
        largest, tokens = scores.max(-1)
        if self._whole.rows:
            cumulative = self._whole.drop_unlikely(self._whole.probabilities(scores)).cumsum(-1)
            tokens[self._whole.index] = self._whole.pick(cumulative)[:, 0]
        if self._nucleus.rows:
            ordered, order = self._nucleus.probabilities(scores).sort(dim=-1, descending=True, stable=True)
            cumulative = ordered.cumsum(-1)
            kept = (cumulative - ordered < self._nucleus.top_p).sum(-1, keepdim=True)
            if self._nucleus.has_min_p:
                kept = kept.minimum((self._nucleus.drop_unlikely(ordered) > 0).sum(-1, keepdim=True))
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
        top_ks = {i: state.top_k for i, state in enumerate(self._states) if state.top_k is not None}
        self._largest_k = max(top_ks.values(), default=0)
        self._with_top_k = torch.tensor(list(top_ks), dtype=torch.long, device=device)
        self._top_k = torch.tensor(list(top_ks.values()), dtype=torch.long, device=device)[:, None]
        min_ps = {i: state.min_p for i, state in enumerate(self._states) if state.min_p > 0}
        self.has_min_p = bool(min_ps)
        self._with_min_p = torch.tensor(list(min_ps), dtype=torch.long, device=device)
        self._min_p = torch.tensor(list(min_ps.values()), dtype=torch.float64, device=device)[:, None]

    def probabilities(self, scores: Tensor) -> Tensor:
        """(rows, V), after temperature and top_k."""
        logits = scores[self.index].double()
        logits -= logits.amax(-1, keepdim=True)  # so that no temperature, however small, makes the largest infinite
        logits /= self._temperature
        if self._largest_k:
            some = logits[self._with_top_k]
            count = min(self._largest_k, some.shape[-1])
            last = some.topk(count).values.gather(-1, self._top_k.clamp(max=count) - 1)
            logits[self._with_top_k] = some.masked_fill_(some < last, float("-inf"))
        return logits.softmax(-1)

    def drop_unlikely(self, probabilities: Tensor) -> Tensor:
        """(rows, V), changed in place: 0 where below min_p times the largest."""
        if self.has_min_p:
            some = probabilities[self._with_min_p]
            probabilities[self._with_min_p] = some.masked_fill_(some < self._min_p * some.amax(-1, keepdim=True), 0)
        return probabilities

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
