"""Continuous batching of one model: the answers of a base and its adapters share forward passes.

Between two decoding steps one chunk of a prompt is read, or several short prompts, so that running answers never wait
for a long one. Long prompts take turns with short ones and with each other; chunk_sizes.py has how much of them is read
when. What a prompt has in common with an earlier one isn't read again (prefixes.py). Read prompts join the rows of
answers that may become about as long, which share a rectangle of the key-value cache and a pass a step. An answer's
text doesn't depend on the rest of the batch, up to rounding in the matrix products. Left out: pages, speculative
decoding.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from raytune_llm.models.decoding.kv_cache import CacheBudget, KVCache
from raytune_llm.models.decoding.prefixes import BLOCK_TOKENS, PrefixCache, cache_of
from raytune_llm.models.decoding.prompts import PromptReading, in_passes, read_token
from raytune_llm.models.device_errors import is_device_lost
from raytune_llm.models.out_of_memory import free_cached_memory, is_out_of_memory
from raytune_llm.serving.engine.adapter_cache import AdapterCache
from raytune_llm.serving.engine.chunk_sizes import CHUNK_SIZES
from raytune_llm.serving.engine.prompt_logprobs import MOST_LOGITS, PromptLogprobs
from raytune_llm.serving.engine.request import GenerationRequest
from raytune_llm.serving.engine.rows import Row, Rows
from raytune_llm.serving.engine.sampling import LogitsProcessors

logger = logging.getLogger(__name__)

ROWS_TOKENS = {"cpu": (512, 2048, 8192), "cuda": (2048, 8192, 32768)}
"""Answers of at most so many tokens, prompts included, decode together; longer ones do too."""

MOST_BEGUN = 4
"""Long prompts that are read in turn; further ones wait, as what is read of each takes memory of its own."""


@dataclass(frozen=True)
class _Group:
    """Prompts that are read together, for the same rows."""

    rows: Sequence[Row]
    reading: PromptReading
    is_begun: bool = False
    """Whether a part has been read."""


class Batch:
    """The answers of one causal model and, with an adapter cache, of its adapters. Not thread-safe."""

    def __init__(
        self,
        model: Any,
        adapters: AdapterCache | None,
        budget: CacheBudget,
        *,
        max_rows: int,
        chunk_tokens: int,
        is_bucketed: bool,
    ) -> None:
        """chunk_tokens: most prompt tokens that are read between two steps; is_bucketed: whether steps have one of few
        shapes (step.py)."""
        self._model, self._adapters, self._budget = model, adapters, budget
        self._chunk_tokens = chunk_tokens
        self._sizes = CHUNK_SIZES[model.device.type](chunk_tokens)
        self._rows_tokens = ROWS_TOKENS[model.device.type]
        like = read_token(model)
        self.rows = tuple(
            Rows(model, adapters, KVCache(like, budget, max_rows=max_rows), max_rows=max_rows, is_bucketed=is_bucketed)
            for _ in range(len(self._rows_tokens) + 1)
        )
        """By ROWS_TOKENS."""
        self._prefixes = PrefixCache(budget)
        self._unread: deque[Row] = deque()
        self._begun: deque[_Group] = deque()
        """Long prompts of which a part is read."""
        self._apart: deque[list[Row]] = deque()
        """Parts of groups that could not be read together."""
        self._is_turn_of_long = False
        self._is_alone = False
        """Whether a single prompt is read while no answer runs; as of the present pass."""

    def __len__(self) -> int:
        return (len(self._reading) if self._is_reading else 0) + sum(map(len, self.rows))

    @property
    def requests(self) -> list[GenerationRequest]:
        return [row.request for row in self._reading] + [request for rows in self.rows for request in rows.requests]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer, its prompt included, that the cache may hold."""
        return self.rows[0].kv_cache.longest

    def has_room(self, request: GenerationRequest) -> bool:
        """Whether the cache has room for one more answer, however long it and the others get."""
        return self._rows_of(request).kv_cache.has_room(request.num_tokens)

    def add(self, request: GenerationRequest, adapter: str | None) -> None:
        """One more answer, for which room is kept from now on; `read` will read its prompt."""
        processors = LogitsProcessors(self._model, request.sampling, request.served.stop_ids, request.prompt, None)
        self._unread.append(Row(request, adapter, None if processors.is_empty else processors))
        self._rows_of(request).kv_cache.promised.append(request.num_tokens)
        self._budget.collect()

    def read(self) -> list[GenerationRequest]:
        """Read a chunk of prompts; returns the answers that ended with their first token or an error.

        An answer that makes this fail ends with the error, and the others are read without it. Raises what says that
        the device is lost.
        """
        if not self._is_reading:
            return []
        self._sizes.begin()
        self._is_alone = not self._is_decoding and len(self._reading) == 1
        rows, group = self._take()
        if not rows:
            return []
        try:
            return self._read(group or self._begin(rows))
        except Exception as error:  # any failure ends only the answer that caused it
            if is_device_lost(error):
                for row in rows:
                    row.request.fail(error)
                raise
            lacks_memory = is_out_of_memory(error)
            # a traceback holds the failed pass's tensors
            failed = error.with_traceback(None) if lacks_memory else error
        if lacks_memory:
            group = None
            if self.give_back() and not rows[0].is_retried:
                rows[0].is_retried = True
                self._apart.append(list(rows))
                return []
        if len(rows) > 1:
            size = len(rows) // 2 if lacks_memory else 1
            self._apart.extend(list(rows[start : start + size]) for start in range(0, len(rows), size))
            return []
        logger.error("reading a prompt for %s failed", rows[0].request.served.id, exc_info=failed)
        rows[0].request.fail(failed.with_traceback(None))
        self._settle(rows)
        return [rows[0].request]

    def drop_cancelled(self) -> list[GenerationRequest]:
        """Remove the answers whose clients have left."""
        dropped = [request for rows in self.rows if len(rows) for request in rows.drop_cancelled()]
        gone = {id(row) for row in self._reading if row.request.cancelled} if self._is_reading else ()
        if gone:
            left = [row for row in self._reading if id(row) in gone]
            self._unread = deque(row for row in self._unread if id(row) not in gone)
            self._begun = deque(group for group in self._begun if id(group.rows[0]) not in gone)
            self._apart = deque(kept for part in self._apart if (kept := [row for row in part if id(row) not in gone]))
            self._settle(left)
            dropped += [row.request for row in left]
        return dropped

    def give_back(self) -> bool:
        """Free what isn't needed for the present answers, after a pass that found no memory; whether that was any."""
        held = self._prefixes.held_bytes
        self._prefixes.shrink(0)
        free_cached_memory()
        return held > 0

    def forget(self, adapter: str) -> None:
        """Drop what was kept of prompts through an adapter."""
        self._prefixes.forget(adapter)

    @property
    def _is_reading(self) -> bool:
        return bool(self._unread or self._begun or self._apart)

    @property
    def _reading(self) -> list[Row]:
        """Answers whose prompts aren't read yet."""
        begun = (row for group in self._begun for row in group.rows)
        return [*self._unread, *begun, *(row for part in self._apart for row in part)]

    def _rows_of(self, request: GenerationRequest) -> Rows:
        return self.rows[sum(request.num_tokens > most for most in self._rows_tokens)]

    def _take(self) -> tuple[Sequence[Row], _Group | None]:
        """What is read next, and the group if it is begun; short and long prompts in turn, no rows while running
        answers have had too little of the time."""
        if self._apart:
            return self._apart.popleft(), None
        short = next((row for row in self._unread if self._is_short(row)), None)
        is_due = self._sizes.is_due or not self._is_decoding
        if short is not None and not (is_due and self._is_turn_of_long and self._has_long):
            self._is_turn_of_long = True
            return self._with_others(short), None
        self._is_turn_of_long = False
        if not is_due:
            return [], None
        if len(self._begun) < MOST_BEGUN:
            for row in self._unread:
                if not self._is_short(row):
                    self._unread.remove(row)
                    return [row], None
        group = self._begun.popleft()
        return group.rows, group

    def _with_others(self, first: Row) -> list[Row]:
        """A short prompt, with others that fit into its pass."""
        if first.needs_prompt_logits:
            self._unread.remove(first)
            return [first]
        start = len(self._known(first))
        fitting = [row for row in self._unread if self._fits_with(row, first, start)]
        most = self._most_tokens(start * BLOCK_TOKENS) if self._is_decoding else self._chunk_tokens
        for places in in_passes([row.length - start * BLOCK_TOKENS for row in fitting], most):
            if fitting.index(first) in places:
                # runs of equal adapters: the base comes first
                taken = sorted((fitting[i] for i in places), key=lambda row: row.adapter or "")
        self._unread = deque(row for row in self._unread if row not in taken)
        return taken

    @property
    def _is_decoding(self) -> bool:
        return any(map(len, self.rows))

    @property
    def _has_long(self) -> bool:
        return bool(self._begun) or not all(map(self._is_short, self._unread))

    def _is_short(self, row: Row) -> bool:
        """Whether one pass reads what isn't known of a prompt."""
        if row.needs_prompt_logits:
            return row.length <= min(self._most_tokens(0), MOST_LOGITS)
        num_known = len(self._known(row)) * BLOCK_TOKENS
        return row.length - num_known <= self._most_tokens(num_known)

    def _fits_with(self, row: Row, first: Row, start: int) -> bool:
        if row is first:
            return True
        is_alike = not row.needs_prompt_logits and self._rows_of(row.request) is self._rows_of(first.request)
        return is_alike and len(self._known(row)) == start

    def _known(self, row: Row) -> list[Any]:
        return self._prefixes.find(row.adapter, row.request.prompt)

    def _begin(self, rows: Sequence[Row]) -> _Group:
        if rows[0].needs_prompt_logits:
            request, name = rows[0].request, rows[0].adapter
            reading = PromptReading(
                self._model, self._adapters, [request.prompt], [name], on_logits=PromptLogprobs(request)
            )
            return _Group(rows, reading)
        known = [self._known(row) for row in rows]
        prompts, names = [row.request.prompt for row in rows], [row.adapter for row in rows]
        # taken apart after a failure, they may have less in common than before
        filled = cache_of(known) if known[0] and len({len(blocks) for blocks in known}) == 1 else None
        return _Group(rows, PromptReading(self._model, self._adapters, prompts, names, filled))

    def _read(self, group: _Group) -> list[GenerationRequest]:
        reading, begun_at = group.reading, group.reading.num_read
        most = self._most_tokens(begun_at)
        logits = reading.read(min(most, MOST_LOGITS) if group.rows[0].needs_prompt_logits else most)
        for place, row in enumerate(group.rows):
            self._prefixes.keep(row.adapter, row.request.prompt, reading.cache, place, reading.num_read)
        is_long = logits is None or group.is_begun
        num_tokens = (reading.num_read - begun_at) * len(group.rows)
        self._sizes.end(num_tokens, is_long=is_long, is_alone=self._is_alone)
        if logits is None:
            self._begun.append(replace(group, is_begun=True))
            return []
        return self._join(group, logits)

    def _most_tokens(self, num_read: int) -> int:
        return self._sizes.most_tokens(num_read, is_alone=self._is_alone)

    def _join(self, group: _Group, logits: Tensor) -> list[GenerationRequest]:
        ended = self._rows_of(group.rows[0].request).join(group.rows, group.reading.cache, logits)
        self._settle(group.rows)
        return ended

    def _settle(self, rows: Sequence[Row]) -> None:
        """Keep no more room for answers that have joined or ended."""
        for row in rows:
            self._rows_of(row.request).kv_cache.promised.remove(row.request.num_tokens)
