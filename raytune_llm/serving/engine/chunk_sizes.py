"""How many prompt tokens are read between two decoding steps, and when it is a long prompt's turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

MIN_CHUNK_TOKENS = 32
"""Smaller ones take hardly less time. One that is configured may be smaller."""
ATTENTION_TOKENS = 65536
"""On a GPU about so many tokens before it make a token's attention cost as much as all else."""
CHUNK_SECONDS = 0.25
"""On a CPU, what a chunk of a long prompt takes at most while other answers run or wait."""
ALONE_SECONDS = 1.0
"""And otherwise: larger ones are faster in all, but what arrives meanwhile waits for them."""
DOUBLED_BELOW = 0.4
"""Share of those seconds below which the next chunk is twice as large."""


class ChunkSizes(Protocol):
    """`begin` and `end` enclose each pass over prompts."""

    @property
    def is_due(self) -> bool:
        """Whether running answers have had their share of the time since the last chunk of a long prompt."""

    def most_tokens(self, num_read: int, *, is_alone: bool) -> int:
        """Of a chunk with so many tokens before it; `is_alone`: no other answer is running or waiting."""

    def begin(self) -> None: ...

    def end(self, num_tokens: int, *, is_long: bool, is_alone: bool) -> None:
        """After a pass over so many tokens, of a part of a long prompt or of whole prompts."""


class SizesByPlace:
    """For GPUs, where passes are queued and clocks show nothing: fewer tokens far into a prompt."""

    is_due = True

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens

    def most_tokens(self, num_read: int, *, is_alone: bool) -> int:
        fewer = self._chunk_tokens * ATTENTION_TOKENS // (ATTENTION_TOKENS + num_read)
        return max(min(MIN_CHUNK_TOKENS, self._chunk_tokens), fewer)

    def begin(self) -> None:
        pass

    def end(self, num_tokens: int, *, is_long: bool, is_alone: bool) -> None:
        pass


class SizesByTime:
    """For CPUs, on which the same chunk takes a tenth of a second or some seconds: a chunk that took too long halves
    the next one, and reading long prompts takes at most as much of the time as all else."""

    def __init__(self, chunk_tokens: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """chunk_tokens: the most, whatever time they take."""
        self._most, self._least, self._clock = chunk_tokens, min(MIN_CHUNK_TOKENS, chunk_tokens), clock
        self._tokens = dict.fromkeys((True, False), max(self._least, chunk_tokens // 4))
        """By whether a prompt is alone."""
        self._since = clock()
        """When the last pass began or ended."""
        self._owed = 0.0
        """Seconds due to running answers before the next chunk of a long prompt."""

    @property
    def is_due(self) -> bool:
        return self._owed <= 0

    def most_tokens(self, num_read: int, *, is_alone: bool) -> int:
        return self._tokens[is_alone]

    def begin(self) -> None:
        self._owed -= self._lap()

    def end(self, num_tokens: int, *, is_long: bool, is_alone: bool) -> None:
        seconds = self._lap()
        if is_long:
            self._owed = seconds
        tokens, allowed = self._tokens[is_alone], ALONE_SECONDS if is_alone else CHUNK_SECONDS
        if seconds > allowed and num_tokens >= tokens:
            self._tokens[is_alone] = max(self._least, tokens // 2)
        elif 2 * num_tokens >= tokens and seconds * tokens / num_tokens < DOUBLED_BELOW * allowed:
            self._tokens[is_alone] = min(self._most, 2 * tokens)

    def _lap(self) -> float:
        before, self._since = self._since, self._clock()
        return self._since - before


CHUNK_SIZES: dict[str, Callable[[int], ChunkSizes]] = {"cpu": SizesByTime, "cuda": SizesByPlace}
"""By the type of the device."""
