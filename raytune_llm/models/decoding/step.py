"""One decoding step: the next token's logits of all rows in one forward pass.

What a step reads (tokens, positions, where to write, which adapters) lies in tensors on the device. Bucketed, its
shapes come from a small set: rows are filled up to powers of two, through the base in unused rows of the cache, and
columns to quarters of one. So the same operations on the same addresses are repeated, and on a GPU are CUDA graphs.
Unfilled, shapes are exact, which is faster where each operation costs by its size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from raytune_llm.compat import is_stateful
from raytune_llm.models.adapter_route import Route
from raytune_llm.models.attention import FULL_ATTENTION
from raytune_llm.models.decoding.graphs import CUDACapture, Graphs
from raytune_llm.models.decoding.kv_cache import KVCache, columns_to_read
from raytune_llm.models.decoding.masks import SLIDING_ATTENTION, Masks, attention_kinds, makes_own_mask
from raytune_llm.models.grouped_lora import GroupedRoute
from raytune_llm.models.masked_lora import MaskedRoute
from raytune_llm.models.row_lora import RowRoute

AnyRoute = Route | GroupedRoute | MaskedRoute | RowRoute | None


class Adapters(Protocol):
    """The adapters on a model, by names of the caller's choice; None is the base."""

    layout_version: int
    """Routes of earlier versions are invalid."""
    fixed_for: object
    """Whose rows the fixed routes were last made for."""

    def route(self, ids: Sequence[Any]) -> AnyRoute:
        """For rows through these adapters, in order."""
        ...

    def fixed_route(self, ids: Sequence[Any]) -> tuple[AnyRoute, int]:
        """The same for rows of one token, at addresses that stay while the number of rows and the rank do, the rank
        with it."""
        ...

    def routed(self, route: AnyRoute) -> AbstractContextManager[None]:
        """Forward passes inside the context take this route."""
        ...


def can_batch(model: Any) -> bool:
    """Whether a model's rows may have different lengths in one pass: it is causal and takes positions and a plain
    cache as arguments."""
    takes = inspect.signature(model.forward).parameters
    return (
        not model.config.is_encoder_decoder
        and not is_stateful(model)
        and attention_kinds(model) <= {FULL_ATTENTION, SLIDING_ATTENTION}
        and not makes_own_mask(model.config)
        and {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys()
    )


class DecodingStep:
    """Steps of the rows of a KVCache."""

    def __init__(
        self, model: Any, adapters: Adapters | None, kv_cache: KVCache, *, max_rows: int, is_bucketed: bool
    ) -> None:
        self._model, self._adapters, self._kv_cache = model, adapters, kv_cache
        self._masks = Masks(model)
        self._is_bucketed = is_bucketed
        has_graphs = is_bucketed and model.device.type == "cuda" and self._masks.is_additive
        self.graphs = Graphs(CUDACapture(model.device) if has_graphs else None)
        self._state = torch.zeros(2, max_rows, 1, dtype=torch.long, device=model.device)
        self._ids, self._positions = self._state
        self._names: list[Any] = []
        self._route: AnyRoute = None
        self._has_route = False
        self._rank = 0
        self._versions = (-1, -1)

    def set_rows(self, tokens: Sequence[int], names: Sequence[Any]) -> None:
        """The rows after some joined or left: the token that each reads next, and its adapter, None for the base."""
        if not names:
            return
        count = len(names)
        filling = self._kv_cache.wide_rows(count) - count if self._is_bucketed else 0
        lengths = self._kv_cache.lengths
        state = torch.tensor([[*tokens, *[0] * filling], [*lengths, *[0] * filling]])
        self._state[:, : count + filling, 0] = state.to(self._state.device)
        self._names = [*names, *[None] * filling]
        self._has_route = False

    def feed(self, tokens: Tensor) -> None:
        """The rows' next tokens, (rows,), on the device."""
        count = len(tokens)
        self._ids[:count, 0] = tokens
        self._positions[:count] += 1
        self._kv_cache.advance()

    def logits(self) -> Tensor:
        """Of each row's next token, (rows, V), in the dtype that the model gives; valid until the next call."""
        count, rows = self._kv_cache.num_rows, len(self._names)
        columns = max(self._kv_cache.lengths) + 1
        self._kv_cache.reserve(rows, columns)
        if self._is_bucketed:
            columns = min(columns_to_read(columns), self._kv_cache.columns)
        layout = -1 if self._adapters is None else self._adapters.layout_version
        if not self._has_route or layout != self._versions[1] or self._has_lost_route():
            self._make_route()
        if self._versions != (self._kv_cache.version, layout):
            self.graphs.clear()
            self._versions = self._kv_cache.version, layout
        lengths = self._kv_cache.lengths
        column = lengths[0] if not self._is_bucketed and min(lengths) == max(lengths) else None
        step = partial(self._forward, rows, columns, column)
        return self.graphs.run((rows, columns, self._rank), step)[:count]

    def _forward(self, rows: int, columns: int, column: int | None) -> Tensor:
        """column: where all rows write, the last of those they see; None where they differ, or may."""
        positions = self._positions[:rows]
        self._kv_cache.begin(positions, columns, column)
        mask = self._masks(positions, columns, sees_all=column is not None)
        cache = self._kv_cache.cache
        return forward(self._model, self._adapters, self._route, self._ids[:rows], positions, mask, cache)

    def _has_lost_route(self) -> bool:
        """Whether another step's rows have taken what this one's fixed route lies in."""
        return self._is_bucketed and self._adapters is not None and self._adapters.fixed_for is not self

    def _make_route(self) -> None:
        if self._adapters is None:
            self._route = None
        elif self._is_bucketed:
            self._route, self._rank = self._adapters.fixed_route(self._names)
            self._adapters.fixed_for = self
        else:
            self._route = self._adapters.route(self._names)
        self._has_route = True


def forward(
    model: Any,
    adapters: Adapters | None,
    route: AnyRoute,
    ids: Tensor,
    positions: Tensor,
    mask: Any,
    cache: Any,
    last: Tensor | int = 1,
) -> Tensor:
    """Logits of one token of each row, (B, V), in the dtype that the model gives.

    ids: (B, T); positions: (B, T) or (1, T); last: which token, (B, 1), else the last one.
    """
    return all_logits(model, adapters, route, ids, positions, mask, cache, last)[:, -1]


def all_logits(
    model: Any,
    adapters: Adapters | None,
    route: AnyRoute,
    ids: Tensor,
    positions: Tensor,
    mask: Any,
    cache: Any,
    last: Tensor | int,
) -> Tensor:
    """The same of so many last tokens of each row, 0 = all, or of one at the places `last`, (B, 1): (B, T, V)."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    with nullcontext() if adapters is None else adapters.routed(route):
        logits: Tensor = model(**inputs, use_cache=True, logits_to_keep=last).logits
    return logits
