"""How the next tokens of answers that decode together are chosen from their logits.

Every answer has its own random stream, and a draw depends on nothing but its own logits and the stream: the inverse
of the cumulative distribution at one uniform number. top_p keeps the likeliest tokens that together reach it (nucleus
sampling, Holtzman et al., 2020, arXiv 1904.09751). What the base's generation config prescribes for greedy
decoding too (repetition penalty, suppressed tokens …) is done by transformers' own logits processors, one answer at a
time; its sampling settings (top_k, min_p …) are left out: the request's parameters decide.

Shape letters: B answers, V vocabulary.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from raytune_llm.compat import logits_processors
from raytune_llm.serving.engine.base import Sampling, TokenLogprob
from raytune_llm.serving.engine.detokenize import decode

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


class Stream:
    """One answer's parameters and its random numbers."""

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
    """Chooses for a fixed set of answers, in order; made anew when the set changes."""

    def __init__(self, streams: Sequence[Stream], device: torch.device) -> None:
        self._streams = streams
        drawn = [i for i, stream in enumerate(streams) if not stream.is_greedy]
        self._whole = _Drawn([i for i in drawn if streams[i].top_p >= 1], streams, device)
        self._nucleus = _Drawn([i for i in drawn if streams[i].top_p < 1], streams, device)
        asked = [stream.num_logprobs for stream in streams if stream.num_logprobs is not None]
        self._num_top = max(asked, default=None)

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
        """What each client asked to know of these choices."""
        if self._num_top is None:
            return [None] * len(self._streams)
        logprobs = logits.log_softmax(-1)
        chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])[:, 0].tolist()
        top = logprobs.topk(min(self._num_top, logprobs.shape[-1]))
        values, indices = top.values.tolist(), top.indices.tolist()
        told: list[TokenLogprob | None] = []
        for row, (stream, token) in enumerate(zip(self._streams, tokens.tolist(), strict=True)):
            if stream.num_logprobs is None or token < 0:
                told.append(None)
                continue
            names = [decode_one(tokenizers[row], index) for index in indices[row][: stream.num_logprobs]]
            pairs = tuple(zip(names, values[row], strict=False))
            told.append(TokenLogprob(decode_one(tokenizers[row], token), chosen[row], pairs))
        return told


class _Drawn:
    """The rows that are drawn in one way."""

    def __init__(self, rows: list[int], streams: Sequence[Stream], device: torch.device) -> None:
        self.rows = rows
        self.index = torch.tensor(rows, dtype=torch.long, device=device)
        self._streams = [streams[row] for row in rows]
        temperatures = [stream.temperature for stream in self._streams]
        self._temperature = torch.tensor(temperatures, dtype=torch.float64, device=device)[:, None]
        self.top_p = torch.tensor([stream.top_p for stream in self._streams], dtype=torch.float64, device=device)[
            :, None
        ]

    def probabilities(self, scores: Tensor) -> Tensor:
        return (scores[self.index].double() / self._temperature).softmax(-1)

    def pick(self, cumulative: Tensor) -> Tensor:
        """Places, (rows, 1), where the cumulative weights (rows, V) first exceed u times their total."""
        uniform = torch.tensor([stream.uniform() for stream in self._streams], dtype=torch.float64)[:, None]
        place = torch.searchsorted(cumulative, uniform.to(cumulative.device) * cumulative[:, -1:], right=True)
        return place.clamp(max=cumulative.shape[-1] - 1)


class LogitsProcessors:
    """The base's own rules for one answer; none for most bases."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        stop_ids: Sequence[int],
        prompt: list[int],
        encoder: Tensor | None,
    ) -> None:
        """`prompt`: what the decoder has read; `encoder`: the encoder's input ids (1, T), None for causal bases."""
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
        """What was chosen."""
        self._seen = torch.cat([self._seen, self._seen.new_tensor([[token]])], dim=-1)


def generation_config(model: PreTrainedModel, max_tokens: int, stop_ids: Sequence[int]) -> GenerationConfig:
    """The base's generation config with everything replaced that a request decides."""
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


@lru_cache(maxsize=1 << 16)
def decode_one(tokenizer: Any, token: int) -> str:
    """A token's text by itself; special tokens by name."""
    return str(tokenizer.decode([token])) or decode(tokenizer, [token])
