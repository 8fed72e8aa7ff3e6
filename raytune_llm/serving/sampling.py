"""How the next token of one answer is chosen from its logits.

The rules are transformers' own logits processors, chosen as `generate` would choose them: those of the base's
generation config that also hold for greedy decoding (repetition penalty, suppressed tokens …), then the request's
temperature and top_p. Sampling settings of the base's generation config (top_k, min_p …) are left out: a request's
parameters say it all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from raytune_llm.serving.engine import Sampling, TokenLogprob
from raytune_llm.serving.text import decode

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


def generation_config(model: PreTrainedModel, sampling: Sampling, stop_ids: Sequence[int]) -> GenerationConfig:
    """The base's generation config with everything replaced that a request decides."""
    config = copy.deepcopy(model.generation_config)
    config.update(
        **RESET, num_beams=1, eos_token_id=list(stop_ids), max_length=None, max_new_tokens=sampling.max_tokens
    )
    config.update(do_sample=sampling.temperature > 0, temperature=None, top_p=None)
    if sampling.temperature > 0:
        config.update(temperature=sampling.temperature, top_p=sampling.top_p)
    return config


class Sampler:
    """Chooses the tokens of one answer; its random stream is its own."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        stop_ids: Sequence[int],
        prompt: list[int],
        encoder: Tensor | None,
    ) -> None:
        """`prompt`: what the decoder has read; `encoder`: the encoder's input ids (1, T), None for causal bases."""
        config = generation_config(model, sampling, stop_ids)
        config.max_length = len(prompt) + sampling.max_tokens
        model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=model.device)
        self._processors: Any = model._get_logits_processor(
            config, input_ids_seq_length=len(prompt), encoder_input_ids=encoder, device=str(model.device)
        )
        self._greedy = sampling.temperature == 0
        self._num_logprobs = sampling.num_logprobs
        self._seen = torch.tensor([prompt], device=model.device)
        self._random = torch.Generator(model.device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token, of logits (1, V)."""
        scores = self._processors(self._seen, logits.float())
        if self._greedy:
            token = scores.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(-1), 1, generator=self._random)
        if self._processors:
            self._seen = torch.cat([self._seen, token], dim=-1)
        return int(token)

    def logprob(self, logits: Tensor, token: int, tokenizer: Any) -> tuple[TokenLogprob, ...]:
        """What the client asked to know of this choice: nothing, or one entry."""
        if self._num_logprobs is None:
            return ()
        logprobs = logits.float().log_softmax(-1)[0]
        top = logprobs.topk(min(self._num_logprobs, len(logprobs)))
        names = [decode_one(tokenizer, index) for index in top.indices.tolist()]
        pairs = tuple(zip(names, top.values.tolist(), strict=True))
        return (TokenLogprob(decode_one(tokenizer, token), float(logprobs[token]), pairs),)


def decode_one(tokenizer: Any, token: int) -> str:
    """A token's text by itself; special tokens by name."""
    return str(tokenizer.decode([token])) or decode(tokenizer, [token])
