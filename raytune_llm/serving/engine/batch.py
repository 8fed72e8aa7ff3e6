"""Answers that decode together: one forward pass a step for all of them, whatever adapters they go through.

Answers join and leave between two steps. Those that join have their prompts read together, padded on the left, and
get their first token from it; then they share the window with the others (window.py). What an answer says doesn't
depend on who else is there, up to the last bits of the matrix products. Left out: prompts read in pieces between
steps, shared prefixes, speculative decoding.

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
from raytune_llm.serving.engine.adapter_cache import AdapterCache
from raytune_llm.serving.engine.kv_cache import KVCache
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.sampling import LogitsProcessors, Sampler, Stream

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 4096
"""Most tokens, padding included, whose prompts are read in one pass: running answers wait for it."""
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"


def can_batch(model: Any) -> bool:
    """Whether a model's rows may have different lengths in one pass: causal, positions and a plain cache given from
    outside."""
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
    """Whether one additive mask serves all layers; else transformers makes each layer's own."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [FULL_ATTENTION])
    is_full = kinds == {FULL_ATTENTION} and (
        getattr(config, "layer_types", None) is not None or getattr(config, "sliding_window", None) is None
    )
    return is_full and attention_implementation(model) in ("sdpa", "eager")


class Row:
    """One answer in a batch."""

    def __init__(self, sequence: GenerationRequest, adapter: str | None, rules: LogitsProcessors | None) -> None:
        self.sequence, self.adapter, self.rules = sequence, adapter, rules
        self.stream = Stream(sequence.sampling)
        self.length = len(sequence.prompt)
        """Tokens read so far."""
        self.last = -1
        """The token that is read next."""


class Batch:
    """The answers of one causal model, through `slots` those of its adapters. Not thread-safe."""

    def __init__(self, model: Any, slots: AdapterCache | None, *, max_rows: int) -> None:
        self._model, self._slots = model, slots
        self._window = KVCache(max_rows)
        self._rows: list[Row] = []
        self._route: Route | None = None
        self._choice = Sampler([], model.device)
        self._layout_version = -1
        self._plain_mask = has_plain_mask(model)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def sequences(self) -> list[GenerationRequest]:
        return [row.sequence for row in self._rows]

    def row(self, sequence: GenerationRequest, adapter: str | None) -> Row:
        """An answer made ready to join."""
        rules = LogitsProcessors(self._model, sequence.sampling, sequence.served.stop_ids, sequence.prompt, None)
        return Row(sequence, adapter, None if rules.is_empty else rules)

    def join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        """Read the prompts of more answers and give each its first token; returns those that ended with it.

        An answer that makes this fail is told so, and the others join without it.
        """
        ended: list[GenerationRequest] = []
        for group in _groups(rows):
            try:
                ended += self._join(group)
            except Exception as error:  # whatever it is, it ends the answer that caused it and no other
                self._drop([i for i, row in enumerate(self._rows) if row in group])
                if len(group) > 1:
                    for row in group:
                        ended += self.join([row])
                    continue
                logger.exception("reading a prompt for %s failed", group[0].sequence.served.id)
                group[0].sequence.fail(error)
                ended.append(group[0].sequence)
        return ended

    def step(self) -> list[GenerationRequest]:
        """One token more for each; returns those that ended."""
        gone = self._drop([i for i, row in enumerate(self._rows) if row.sequence.cancelled])
        if not self._rows:
            return gone
        if self._slots is not None and self._layout_version != self._slots.layout_version:
            self._refresh()
        self._window.make_column()
        device = self._model.device
        ids = torch.tensor([row.last for row in self._rows], device=device)[:, None]
        positions = torch.tensor([row.length for row in self._rows], device=device)[:, None]
        mask = self._window.bias if self._plain_mask else self._window.visible
        logits = self._forward(ids, positions, mask, self._window.cache, self._route)
        self._window.end += 1
        for row in self._rows:
            row.length += 1
        tokens = _chosen(self._rows, self._choice, logits)
        return gone + self._drop(_tell(self._rows, self._choice, logits, tokens))

    def clear(self) -> list[GenerationRequest]:
        """Empty the batch, after a step that failed."""
        return self._drop(list(range(len(self._rows))))

    def _join(self, rows: Sequence[Row]) -> list[GenerationRequest]:
        lengths = [row.length for row in rows]
        width, device = max(lengths), self._model.device
        padded = [[0] * (width - row.length) + row.sequence.prompt for row in rows]
        ids = torch.tensor(padded, device=device)
        starts = torch.tensor([width - length for length in lengths], device=device)[:, None]
        positions = torch.arange(width, device=device) - starts
        filled = DynamicCache()
        route = self._made_route(rows)
        logits = self._forward(ids, positions.clamp(min=0), (positions >= 0).long(), filled, route)
        choice = Sampler([row.stream for row in rows], device)
        tokens = _chosen(rows, choice, logits)
        self._window.insert(filled, lengths)
        first = len(self._rows)
        self._rows += rows
        ended = [first + i for i in _tell(rows, choice, logits, tokens)]
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

        if self._slots is None:
            output = passed()
        else:
            with self._slots.routed(route):
                output = passed()
        logits = output.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _drop(self, places: Sequence[int]) -> list[GenerationRequest]:
        if not places:
            return []
        dropped = [self._rows[i].sequence for i in places]
        for i in sorted(places, reverse=True):
            self._window.drop(i)
            self._rows[i] = self._rows[-1]
            self._rows.pop()
        self._refresh()
        return dropped

    def _refresh(self) -> None:
        """What depends on who is here, and in which order."""
        self._route = self._made_route(self._rows)
        self._choice = Sampler([row.stream for row in self._rows], self._model.device)
        self._layout_version = -1 if self._slots is None else self._slots.layout_version

    def _made_route(self, rows: Sequence[Row]) -> Route | None:
        return None if self._slots is None else self._slots.route([row.adapter for row in rows])


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows whose prompts are read in one pass: of similar lengths, within the bound, those of an adapter side by
    side."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length):
        if groups and (len(groups[-1]) + 1) * row.length <= PROMPT_TOKENS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [sorted(group, key=lambda row: row.adapter or "") for group in groups]


def _chosen(rows: Sequence[Row], choice: Sampler, logits: Tensor) -> Tensor:
    """Each row's next token, (B,), by the base's own rules where it has any. logits: (B, V)."""
    if any(row.rules is not None for row in rows):
        each = [logits[i : i + 1] if row.rules is None else row.rules(logits[i : i + 1]) for i, row in enumerate(rows)]
        return choice(torch.cat(each))
    return choice(logits)


def _tell(rows: Sequence[Row], choice: Sampler, logits: Tensor, tokens: Tensor) -> list[int]:
    """Hand each row its token; the places of those that ended."""
    told = choice.logprobs(logits, tokens, [row.sequence.tokenizer for row in rows])
    ended = []
    for place, (row, token, logprob) in enumerate(zip(rows, tokens.tolist(), told, strict=True)):
        if token < 0:
            row.sequence.fail(RuntimeError(f"{row.sequence.served.id}: the logits are not finite"))
            ended.append(place)
            continue
        if row.rules is not None:
            row.rules.add(token)
        row.last = token
        if not row.sequence.take(token, logprob):
            ended.append(place)
    return ended
