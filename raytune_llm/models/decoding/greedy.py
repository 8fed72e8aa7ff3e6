"""The likeliest completions of many prompts, through any adapters of one base, decoded together.

Rows that end are replaced by the next prompts. Prompts are taken in the order of their lengths, equal ones for several
adapters next to each other, so that they are read in shared passes. The tokens are those of one prompt decoded by
itself, up to rounding in the matrix products. Left out: sampling, penalties, bases that keep no plain key-value cache
(`can_batch`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from transformers.cache_utils import DynamicCache

from raytune_llm.models.decoding.kv_cache import CacheBudget, KVCache, default_budget
from raytune_llm.models.decoding.prompts import in_passes, read_prompts, read_token
from raytune_llm.models.decoding.routes import StackRoutes
from raytune_llm.models.decoding.step import DecodingStep
from raytune_llm.models.forward import inference
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
from raytune_llm.models.stacked_lora import AdapterStack

JOINING_SHARE = 4
"""Prompts are read when 1 / this of the rows is free: a pass over few of them costs nearly as much as one over many,
and an idle row costs little."""


class PromptReader(Protocol):
    """Reads some prompts for another purpose as well, such as to score what is known to follow them."""

    lengths: Mapping[int, int]
    """Tokens that are read for each of them, by the prompt's place; it has two at least."""

    def read(self, places: Sequence[int]) -> DynamicCache:
        """A cache filled with the prompts of these places and any tokens after them, padded on the right; it is called
        where the model takes their common adapter, for a place perhaps more than once."""
        ...


def greedy_answers(
    model: Any,
    prompts: Sequence[list[int]],
    adapters: Sequence[int | None],
    *,
    stack: AdapterStack | None,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    max_rows: int,
    reader: PromptReader | None = None,
) -> list[list[int]]:
    """Token ids of the likeliest completion of each prompt, without the one that ended it.

    When memory runs out, the answers that haven't ended begin again in half as many rows.

    Args:
        model: a causal model that `can_batch`, with the layers of `stack` if there is one.
        adapters: the slot of `stack` that each prompt is answered through, None = the base as it is.
        stop_ids: tokens that end an answer.
        max_rows: answers decoded at once.
        reader: reads those prompts that are in its lengths.

    Raises:
        ValueError: a prompt is empty, or an adapter is given without a stack.
    """
    lengths = {place: len(prompt) for place, prompt in enumerate(prompts)} | dict(reader.lengths if reader else {})
    given = enumerate(zip(prompts, adapters, strict=True))
    answers = [_Answer(place, prompt, slot, lengths[place]) for place, (prompt, slot) in given]
    for place, answer in enumerate(answers):
        if not answer.prompt:
            raise ValueError(f"prompt {place} has no tokens")
        if stack is None and answer.slot is not None:
            raise ValueError(f"prompt {place} has the adapter {answer.slot}, but there is no stack of adapters")
    waiting = _in_order(answers)
    with inference(model):
        while waiting:
            rows = _Rows(model, stack, frozenset(stop_ids), max_new_tokens, max_rows, reader)
            try:
                rows.complete(waiting)
            except RuntimeError as error:
                if max_rows == 1 or not is_out_of_memory(error):
                    raise
                max_rows = max(1, min(max_rows, rows.most_at_once) // 2)
            waiting = [answer for answer in waiting if not answer.is_done]
            if waiting:  # only here does no traceback hold the failed pass's tensors
                del rows
                free_cached_memory()
    return [answer.tokens for answer in answers]


@dataclass
class _Answer:
    place: int
    prompt: list[int]
    slot: int | None
    num_read: int
    """Tokens that are read before it begins."""
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False


def _in_order(answers: Sequence[_Answer]) -> list[_Answer]:
    """The longest prompts first, since what doesn't fit should fail at once; equal ones together."""
    return sorted(answers, key=lambda answer: (-answer.num_read, answer.prompt))


class _Rows:
    """Answers that decode together."""

    def __init__(
        self,
        model: Any,
        stack: AdapterStack | None,
        stop_ids: frozenset[int],
        max_new_tokens: int,
        max_rows: int,
        reader: PromptReader | None,
    ) -> None:
        self._model, self._stop_ids, self._reader = model, stop_ids, reader
        self._max_new_tokens, self._max_rows = max_new_tokens, max_rows
        self._routes = None if stack is None else StackRoutes(stack)
        self._kv_cache = KVCache(read_token(model), CacheBudget(default_budget(model.device)), max_rows=max_rows)
        self._step = DecodingStep(model, self._routes, self._kv_cache, max_rows=max_rows, is_bucketed=False)
        self._answers: list[_Answer] = []
        """Of each row of the cache."""
        self.most_at_once = 1
        """Answers that decoded together, or were about to."""

    def complete(self, answers: Sequence[_Answer]) -> None:
        """Decode all of them; those that aren't done when it fails have to begin again."""
        start = 0
        for answer in answers:
            answer.tokens.clear()
        while start < len(answers) or self._answers:
            free = self._max_rows - len(self._answers)
            if start < len(answers) and free * JOINING_SHARE >= self._max_rows:
                joining = self._with_room(answers[start : start + free])
                start += len(joining)
                self._join(joining)
            if self._answers:
                tokens = self._step.logits().max(-1).indices
                self._step.feed(tokens)
                self._drop(self._add(self._answers, tokens))

    def _with_room(self, waiting: Sequence[_Answer]) -> list[_Answer]:
        """The first of them for which the cache has room, at least one where no other is left to free it."""
        joining: list[_Answer] = []
        for answer in waiting:
            if not self._kv_cache.has_room(self._need(answer)) and (joining or self._answers):
                break
            self._kv_cache.promised.append(self._need(answer))
            joining.append(answer)
        self._kv_cache.promised.clear()
        return joining

    def _need(self, answer: _Answer) -> int:
        """Tokens that it may come to."""
        return len(answer.prompt) + self._max_new_tokens

    def _join(self, joining: Sequence[_Answer]) -> None:
        self.most_at_once = max(self.most_at_once, len(self._answers) + len(joining))
        # runs of equal adapters: the base comes first
        joining = sorted(joining, key=lambda answer: -1 if answer.slot is None else answer.slot)
        elsewhere = self._reader.lengths if self._reader else {}
        self._in_passes([answer for answer in joining if answer.place not in elsewhere], self._join_pass)
        read = [answer for answer in joining if answer.place in elsewhere]
        for _, same in itertools.groupby(read, key=lambda answer: answer.slot):
            self._in_passes(list(same), self._join_read)

    def _in_passes(self, answers: Sequence[_Answer], join: Callable[[list[_Answer]], None]) -> None:
        for group in in_passes([answer.num_read for answer in answers]):
            join([answers[i] for i in sorted(group)])

    def _join_pass(self, part: list[_Answer]) -> None:
        """Read the prompts, which gives each its first token."""
        prompts = [answer.prompt for answer in part]
        filled, logits = read_prompts(self._model, self._routes, prompts, [answer.slot for answer in part])
        self._kv_cache.insert(filled, [len(prompt) for prompt in prompts], [self._need(answer) for answer in part])
        first = len(self._answers)
        self._answers += part
        self._drop([first + place for place in self._add(part, logits.max(-1).indices)], is_new=True)

    def _join_read(self, part: list[_Answer]) -> None:
        """Let the reader read prompts of one adapter; a decoding step reads each one's last token once more."""
        assert self._reader is not None
        slots = [answer.slot for answer in part]
        with nullcontext() if self._routes is None else self._routes.routed(self._routes.route(slots)):
            filled = self._reader.read([answer.place for answer in part])
        lengths = [len(answer.prompt) - 1 for answer in part]
        self._kv_cache.insert(filled, lengths, [self._need(answer) for answer in part])
        self._answers += part
        self._drop([], is_new=True)

    def _add(self, answers: Sequence[_Answer], tokens: Tensor) -> list[int]:
        """Give each answer its token, (B,); returns the places of those that ended."""
        ended = []
        for place, (answer, token) in enumerate(zip(answers, tokens.tolist(), strict=True)):
            if token not in self._stop_ids:
                answer.tokens.append(token)
            answer.is_done = token in self._stop_ids or len(answer.tokens) >= self._max_new_tokens
            if answer.is_done:
                ended.append(place)
        return ended

    def _drop(self, places: Sequence[int], *, is_new: bool = False) -> None:
        """Remove the rows that ended; `is_new`: others joined."""
        for i in sorted(places, reverse=True):
            self._kv_cache.drop(i)
            self._answers[i] = self._answers[-1]
            self._answers.pop()
        if places or is_new:
            last = [(answer.tokens or answer.prompt)[-1] for answer in self._answers]
            self._step.set_rows(last, [answer.slot for answer in self._answers])
