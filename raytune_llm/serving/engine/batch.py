"""Continuous batching of one model: one forward pass a step for all answers, whichever adapters they use.

Answers join and leave between two steps. The prompts of those that join are read together, padded on the right, which
gives each its first token; then they share the key-value cache with the others. An answer's text doesn't depend on
the rest of the batch, up to rounding in the matrix products. Left out: chunked prefill, shared prefixes, speculative
decoding.

Shape letters: B answers, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raytune_llm.models.decoding.kv_cache import CacheBudget, KVCache
from raytune_llm.models.decoding.prompts import in_passes, read_prompts, read_token
from raytune_llm.models.decoding.step import DecodingStep
from raytune_llm.models.device_errors import is_device_lost
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
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

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)


class Batch:
    """The answers of one causal model and, with an adapter cache, of its adapters. Not thread-safe."""

    def __init__(
        self, model: Any, adapters: AdapterCache | None, budget: CacheBudget, *, max_rows: int, is_bucketed: bool
    ) -> None:
        """is_bucketed: whether steps have one of few shapes (step.py)."""
        self._model, self._adapters = model, adapters
        self._kv_cache = KVCache(read_token(model), budget, max_rows=max_rows)
        self._step = DecodingStep(model, adapters, self._kv_cache, max_rows=max_rows, is_bucketed=is_bucketed)
        self._rows: list[Row] = []
        self._sampler = Sampler([], model.device)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def requests(self) -> list[GenerationRequest]:
        return [row.request for row in self._rows]

    def row(self, request: GenerationRequest, adapter: str | None) -> Row:
        """A row for `join`."""
        processors = LogitsProcessors(self._model, request.sampling, request.served.stop_ids, request.prompt, None)
        return Row(request, adapter, None if processors.is_empty else processors)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, its prompt included, that the cache may hold."""
        return self._kv_cache.longest

    def has_room(self, request: GenerationRequest) -> bool:
        """Whether the cache has room for one more answer, however long it and the others get."""
        return self._kv_cache.has_room(request.num_tokens)

    def promise(self, request: GenerationRequest) -> None:
        """Keep room for an answer until the next `join`."""
        self._kv_cache.promised.append(request.num_tokens)

    def join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        """Read the prompts of more answers and give each its first token; returns those that ended with it.

        An answer that makes this fail ends with the error, and the others join without it. Raises what says that the
        device is lost.
        """
        ended: list[GenerationRequest] = []
        self._kv_cache.promised.clear()
        for group in _groups(rows):
            parts: list[Sequence[Row]] = [group]
            while parts:
                part = parts.pop(0)
                try:
                    ended += self._join(part)
                    continue
                except Exception as error:  # any failure ends only the answer that caused it
                    if is_device_lost(error):
                        raise
                    self._drop([i for i, row in enumerate(self._rows) if row in part])
                    lacks_memory = is_out_of_memory(error)
                    if len(part) == 1:
                        ended.append(_failed(part[0].request, error))
                if lacks_memory:  # only here does no traceback hold the failed pass's tensors
                    free_cached_memory()
                parts[:0] = _parts(part, len(part) // 2 if lacks_memory else 1)
        return ended

    def drop_cancelled(self) -> list[GenerationRequest]:
        """Remove the answers whose clients have left."""
        return self._drop([i for i, row in enumerate(self._rows) if row.request.cancelled])

    def step(self) -> list[GenerationRequest]:
        """One more token for each answer; returns those that ended."""
        logits = _exact(self._step.logits())
        tokens = _sampled(self._rows, self._sampler, logits)
        logprobs = self._sampler.logprobs(logits, tokens, [row.request.tokenizer for row in self._rows])
        self._step.feed(tokens)
        return self._drop(_add_tokens(self._rows, tokens, logprobs))

    def evict(self, error: Exception) -> list[GenerationRequest]:
        """End the longest answer with an error, after a step that found no memory; the others are as before it."""
        lengths = self._kv_cache.lengths
        longest = max(range(len(lengths)), key=lambda row: (lengths[row], row))
        self._rows[longest].request.fail(error)
        self._step.graphs.clear()
        free_cached_memory()
        return self._drop([longest])

    def clear(self) -> list[GenerationRequest]:
        """Remove all answers, after a step that failed."""
        dropped, self._rows = self.requests, []
        self._kv_cache.clear()
        return dropped

    def _join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        prompts, names = [row.request.prompt for row in rows], [row.adapter for row in rows]
        filled, logits = read_prompts(self._model, self._adapters, prompts, names)
        logits = _exact(logits)
        sampler = Sampler([row.sampling for row in rows], self._model.device)
        tokens = _sampled(rows, sampler, logits)
        logprobs = sampler.logprobs(logits, tokens, [row.request.tokenizer for row in rows])
        self._kv_cache.insert(filled, [row.length for row in rows], [row.request.num_tokens for row in rows])
        first = len(self._rows)
        self._rows += rows
        ended = [first + i for i in _add_tokens(rows, tokens, logprobs)]
        self._refresh()
        return self._drop(ended)

    def _drop(self, places: Sequence[int]) -> list[GenerationRequest]:
        if not places:
            return []
        dropped = [self._rows[i].request for i in places]
        for i in sorted(places, reverse=True):
            self._kv_cache.drop(i)
            self._rows[i] = self._rows[-1]
            self._rows.pop()
        self._kv_cache.shrink()
        self._refresh()
        return dropped

    def _refresh(self) -> None:
        """Rebuild what depends on the rows and their order."""
        self._step.set_rows([row.last for row in self._rows], [row.adapter for row in self._rows])
        self._sampler = Sampler([row.sampling for row in self._rows], self._model.device)


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose prompts are read in one pass: of similar lengths, within the bound, and sorted by adapter."""
    groups = in_passes([row.length for row in rows])
    return [sorted((rows[i] for i in group), key=lambda row: row.adapter or "") for group in groups]


def _parts(rows: Sequence[Row], size: int) -> list[Sequence[Row]]:
    """What to try of rows that could not be read together, so many at a time; nothing of a single one."""
    return [rows[start : start + size] for start in range(0, len(rows), size)] if len(rows) > 1 else []


def _failed(request: GenerationRequest, error: Exception) -> GenerationRequest:
    """The request, ended with an error."""
    logger.error("reading a prompt for %s failed", request.served.id, exc_info=error)
    request.fail(error.with_traceback(None))
    return request


def _exact(logits: Tensor) -> Tensor:
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
        if row.processors is not None:
            row.processors.add(token)
        row.sampling.add(token)
        row.last = token
        if not row.request.add_token(token, logprob):
            ended.append(place)
    return ended
