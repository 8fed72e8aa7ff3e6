"""Answers that decode together: their rows of the key-value cache, a token a step.

Shape letters: B answers, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding.kv_cache import KVCache
from raytune_llm.models.decoding.step import DecodingStep
from raytune_llm.models.out_of_memory import free_cached_memory
from raytune_llm.serving.engine.adapter_cache import AdapterCache
from raytune_llm.serving.engine.base import TokenLogprob
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.sampling import LogitsProcessors, Sampler, SamplingState

logger = logging.getLogger(__name__)


class Row:
    """One answer in a batch."""

    def __init__(self, request: GenerationRequest, adapter: str | None, processors: LogitsProcessors | None) -> None:
        self.request, self.adapter, self.processors = request, adapter, processors
        self.sampling = SamplingState(request.sampling, request.prompt, request.grammar)
        self.last = -1
        """The token that the next step reads."""
        self.is_retried = False
        """Whether its prompt is read anew, as memory had to be freed for it."""

    @property
    def needs_prompt_logits(self) -> bool:
        return self.request.sampling.num_prompt_logprobs is not None

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)


class Rows:
    """Not thread-safe."""

    def __init__(
        self, model: Any, adapters: AdapterCache | None, kv_cache: KVCache, *, max_rows: int, is_bucketed: bool
    ) -> None:
        self.kv_cache = kv_cache
        self.decoding = DecodingStep(model, adapters, kv_cache, max_rows=max_rows, is_bucketed=is_bucketed)
        self._device = model.device
        self._rows: list[Row] = []
        self._sampler = Sampler([], model.device)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def requests(self) -> list[GenerationRequest]:
        return [row.request for row in self._rows]

    def join(self, rows: Sequence[Row], filled: DynamicCache, logits: Tensor) -> list[GenerationRequest]:
        """Add answers whose prompts are in the cache `filled` and give each its first token, by logits (B, V); returns
        those that ended with it. What makes this fail leaves the rows as they were."""
        self.kv_cache.insert(filled, [row.length for row in rows], [row.request.num_tokens for row in rows])
        first = len(self._rows)
        self._rows += rows
        try:
            ended = [first + i for i in first_tokens(rows, logits)]
        except Exception:
            self._drop(range(first, len(self._rows)))
            raise
        self._refresh()
        return self._drop(ended)

    def step(self) -> list[GenerationRequest]:
        """One more token for each answer; returns those that ended."""
        logits = exact(self.decoding.logits())
        tokens = _sampled(self._rows, self._sampler, logits)
        logprobs = self._sampler.logprobs(logits, tokens, [row.request.tokenizer for row in self._rows])
        self.decoding.feed(tokens)
        return self._drop(_add_tokens(self._rows, tokens, logprobs))

    def drop_cancelled(self) -> list[GenerationRequest]:
        """Remove the answers whose clients have left."""
        return self._drop([i for i, row in enumerate(self._rows) if row.request.cancelled])

    def evict(self, error: Exception) -> list[GenerationRequest]:
        """End the longest answer with an error, after a step that found no memory; the others are as before it."""
        lengths = self.kv_cache.lengths
        longest = max(range(len(lengths)), key=lambda row: (lengths[row], row))
        self._rows[longest].request.fail(error)
        self.decoding.graphs.clear()
        free_cached_memory()
        return self._drop([longest])

    def clear(self) -> list[GenerationRequest]:
        """Remove all answers, after a step that failed."""
        dropped, self._rows = self.requests, []
        self.kv_cache.clear()
        return dropped

    def _drop(self, places: Sequence[int]) -> list[GenerationRequest]:
        if not places:
            return []
        dropped = [self._rows[i].request for i in places]
        for i in sorted(places, reverse=True):
            self.kv_cache.drop(i)
            self._rows[i] = self._rows[-1]
            self._rows.pop()
        self.kv_cache.shrink()
        self._refresh()
        return dropped

    def _refresh(self) -> None:
        """Rebuild what depends on the rows and their order."""
        self.decoding.set_rows([row.last for row in self._rows], [row.adapter for row in self._rows])
        self._sampler = Sampler([row.sampling for row in self._rows], self._device)


def first_tokens(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """Give each answer its first token, by logits (B, V); returns the places of those that ended."""
    logits = exact(logits)
    sampler = Sampler([row.sampling for row in rows], logits.device)
    tokens = _sampled(rows, sampler, logits)
    return _add_tokens(rows, tokens, sampler.logprobs(logits, tokens, [row.request.tokenizer for row in rows]))


def exact(logits: Tensor) -> Tensor:
    """In fp32, or fp64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _sampled(rows: Sequence[Row], sampler: Sampler, logits: Tensor) -> Tensor:
    """Each row's next token, (B,), after its logits processors where it has any. logits: (B, V)."""
    if any(row.processors is not None for row in rows):
        each = [
            logits[i : i + 1] if row.processors is None else row.processors(logits[i : i + 1])
            for i, row in enumerate(rows)
        ]
        return sampler(torch.cat(each))
    return sampler(logits)


def _add_tokens(rows: Sequence[Row], tokens: Tensor, logprobs: Sequence[TokenLogprob | None]) -> list[int]:
    """Give each answer its token; returns the places of those that ended."""
    ended = []
    for place, (row, token, logprob) in enumerate(zip(rows, tokens.tolist(), logprobs, strict=True)):
        if token < 0:
            reason = f"{row.request.served.id}: the logits are not finite"
            row.request.fail(row.sampling.error or RuntimeError(reason))
            ended.append(place)
            continue
        try:
            if row.processors is not None:
                row.processors.add(token)
            if row.sampling.is_tracked:
                row.sampling.add(token)
            row.last = token
            needs_more = row.request.add_token(token, logprob)
        except Exception as error:  # any failure ends only this answer
            logger.exception("an answer by %s failed", row.request.served.id)
            row.request.fail(error)
            needs_more = False
        if not needs_more:
            ended.append(place)
    return ended
