"""The log-probabilities of a prompt's own tokens, for clients that score texts."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, tensor

from raytune_llm.serving.engine.base import TokenLogprob
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.sampling import Sampler, SamplingState

MOST_LOGITS = 256
"""Most tokens of a prompt whose logits are computed in one pass."""


class PromptLogprobs:
    """Of one request, which gets them when its prompt is read."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._state = SamplingState(replace(request.sampling, num_logprobs=request.sampling.num_prompt_logprobs))
        self._found: list[TokenLogprob | None] = [None]

    def __call__(self, start: int, logits: Tensor) -> None:
        """logits: (T, V), after the tokens from place `start` on."""
        prompt = self._request.prompt
        following = prompt[start + 1 : start + 1 + len(logits)]
        logits = logits[: len(following)].float()
        if following:
            sampler = Sampler([self._state] * len(following), logits.device)
            names = [self._request.tokenizer] * len(following)
            self._found += sampler.logprobs(logits, tensor(following, device=logits.device), names)
        if len(self._found) == len(prompt):
            self._request.prompt_logprobs = tuple(self._found)
