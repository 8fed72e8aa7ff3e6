"""Continuous batching of one model: one forward pass a step for all answers, whichever adapters they use.

Answers join and leave between two steps. The prompts of those that join are read together, padded on the left, which
gives each its first token; then they share the key-value cache with the others. An answer's text doesn't depend on
the rest of the batch, up to rounding in the matrix products. Left out: chunked prefill, shared prefixes, speculative
decoding.

Shape letters: B answers, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.compat import attention_implementation, is_stateful
from raytune_llm.models.adapter_route import Route
from raytune_llm.models.attention import FULL_ATTENTION, has_full_attention
from raytune_llm.serving.engine.adapter_cache import AdapterCache
from raytune_llm.serving.engine.kv_cache import KVCache
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.sampling import LogitsProcessors, Sampler, SamplingState

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 4096
"""Most prompt tokens, padding included, that are read in one pass; running answers wait for it."""
SLIDING_ATTENTION = "sliding_attention"


def can_batch(model: Any) -> bool:
    """Whether a model's rows may have different lengths in one pass: it is causal and takes positions and a plain
    cache as arguments."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [FULL_ATTENTION])
    takes = inspect.signature(model.forward).parameters
    return (
        not model.config.is_encoder_decoder
        and not is_stateful(model)
        and kinds <= {FULL_ATTENTION, SLIDING_ATTENTION}
        and {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys()
    )


def has_plain_mask(model: Any) -> bool:
    """Whether all layers take one additive mask; otherwise transformers builds a mask for each layer."""
    return has_full_attention(model) and attention_implementation(model) in ("sdpa", "eager")


class Row:
    """One answer in a batch."""

    def __init__(self, request: GenerationRequest, adapter: str | None, processors: LogitsProcessors | None) -> None:
        self.request, self.adapter, self.processors = request, adapter, processors
        self.sampling = SamplingState(request.sampling)
        self.length = len(request.prompt)
        """Tokens read so far."""
        self.last = -1
        """The token that the next step reads."""


class Batch:
    """The answers of one causal model and, with an adapter cache, of its adapters. Not thread-safe."""

    def __init__(self, model: Any, adapters: AdapterCache | None, *, max_rows: int) -> None:
        self._model, self._adapters = model, adapters
        self._kv_cache = KVCache(max_rows)
        self._rows: list[Row] = []
        self._route: Route | None = None
        self._sampler = Sampler([], model.device)
        self._layout_version = -1
        self._plain_mask = has_plain_mask(model)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def requests(self) -> list[GenerationRequest]:
        return [row.request for row in self._rows]

    def row(self, request: GenerationRequest, adapter: str | None) -> Row:
        """A row for `join`."""
        processors = LogitsProcessors(self._model, request.sampling, request.served.stop_ids, request.prompt, None)
        return Row(request, adapter, None if processors.is_empty else processors)

    def join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        """Read the prompts of more answers and give each its first token; returns those that ended with it.

        An answer that makes this fail ends with the error, and the others join without it.
        """
        ended: list[GenerationRequest] = []
        for group in _groups(rows):
            try:
                ended += self._join(group)
            except Exception as error:  # any failure ends only the answer that caused it
                self._drop([i for i, row in enumerate(self._rows) if row in group])
                if len(group) > 1:
                    for row in group:
                        ended += self.join([row])
                    continue
                logger.exception("reading a prompt for %s failed", group[0].request.served.id)
                group[0].request.fail(error)
                ended.append(group[0].request)
        return ended

    def step(self) -> list[GenerationRequest]:
        """One more token for each answer; returns those that ended."""
        cancelled = self._drop([i for i, row in enumerate(self._rows) if row.request.cancelled])
        if not self._rows:
            return cancelled
        if self._adapters is not None and self._layout_version != self._adapters.layout_version:
            self._refresh()
        self._kv_cache.make_column()
        device = self._model.device
        ids = torch.tensor([row.last for row in self._rows], device=device)[:, None]
        positions = torch.tensor([row.length for row in self._rows], device=device)[:, None]
        mask = self._kv_cache.bias if self._plain_mask else self._kv_cache.visible
        logits = self._forward(ids, positions, mask, self._kv_cache.cache, self._route)
        self._kv_cache.end += 1
        for row in self._rows:
            row.length += 1
        tokens = _sampled(self._rows, self._sampler, logits)
        return cancelled + self._drop(_add_tokens(self._rows, self._sampler, logits, tokens))

    def clear(self) -> list[GenerationRequest]:
        """Remove all answers, after a step that failed."""
        return self._drop(list(range(len(self._rows))))

    def _join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        lengths = [row.length for row in rows]
        width, device = max(lengths), self._model.device
        padded = [[0] * (width - row.length) + row.request.prompt for row in rows]
        ids = torch.tensor(padded, device=device)
        starts = torch.tensor([width - length for length in lengths], device=device)[:, None]
        positions = torch.arange(width, device=device) - starts
        filled = DynamicCache()
        route = self._make_route(rows)
        logits = self._forward(ids, positions.clamp(min=0), (positions >= 0).long(), filled, route)
        sampler = Sampler([row.sampling for row in rows], device)
        tokens = _sampled(rows, sampler, logits)
        self._kv_cache.insert(filled, lengths)
        first = len(self._rows)
        self._rows += rows
        ended = [first + i for i in _add_tokens(rows, sampler, logits, tokens)]
        self._refresh()
        return self._drop(ended)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any, route: Route | None) -> Tensor:
        """Logits of each row's last token, (B, V), in fp32 or better. ids: (B, T)."""

        def passed() -> Any:
            return self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

        if self._adapters is None:
            output = passed()
        else:
            with self._adapters.routed(route):
                output = passed()
        logits = output.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _drop(self, places: Sequence[int]) -> list[GenerationRequest]:
        if not places:
            return []
        dropped = [self._rows[i].request for i in places]
        for i in sorted(places, reverse=True):
            self._kv_cache.drop(i)
            self._rows[i] = self._rows[-1]
            self._rows.pop()
        self._refresh()
        return dropped

    def _refresh(self) -> None:
        """Rebuild what depends on the rows and their order."""
        self._route = self._make_route(self._rows)
        self._sampler = Sampler([row.sampling for row in self._rows], self._model.device)
        self._layout_version = -1 if self._adapters is None else self._adapters.layout_version

    def _make_route(self, rows: Sequence[Row]) -> Route | None:
        return None if self._adapters is None else self._adapters.route([row.adapter for row in rows])


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose prompts are read in one pass: of similar lengths, within the bound, and sorted by adapter."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length):
        if groups and (len(groups[-1]) + 1) * row.length <= PROMPT_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group, key=lambda row: row.adapter or "") for group in groups]


def _sampled(rows: Sequence[Row], sampler: Sampler, logits: Tensor) -> Tensor:
    """Each row's next token, (B,), after its logits processors where it has any. logits: (B, V)."""
    if any(row.processors is not None for row in rows):
        each = [
            logits[i : i + 1] if row.processors is None else row.processors(logits[i : i + 1])
            for i, row in enumerate(rows)
        ]
        return sampler(torch.cat(each))
    return sampler(logits)


def _add_tokens(rows: Sequence[Row], sampler: Sampler, logits: Tensor, tokens: Tensor) -> list[int]:
    """Give each answer its token; returns the places of those that ended."""
    logprobs = sampler.logprobs(logits, tokens, [row.request.tokenizer for row in rows])
    ended = []
    for place, (row, token, logprob) in enumerate(zip(rows, tokens.tolist(), logprobs, strict=True)):
        if token < 0:
            row.request.fail(RuntimeError(f"{row.request.served.id}: the logits are not finite"))
            ended.append(place)
            continue
        if row.processors is not None:
            row.processors.add(token)
        row.last = token
        if not row.request.add_token(token, logprob):
            ended.append(place)
    return ended
