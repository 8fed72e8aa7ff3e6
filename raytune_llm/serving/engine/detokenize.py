"""From answer tokens to text, as they come: whole characters only, and nothing at or after a stop string.

A character may span several tokens (byte-level BPE, byte fallback) and a decoder may strip the first token's space,
so a token can't be decoded by itself. As text-generation-inference does, a window of the last tokens is decoded
twice, without and with the new ones, and the difference is what they add.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@lru_cache(maxsize=256)
def byte_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that stand for one byte in vocabularies with byte fallback."""
    return frozenset(index for token, index in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token))


class Detokenizer:
    """Joined, what `add` and `flush` return is `tokenizer.decode` of all tokens, special ones skipped."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_tokens = byte_tokens(tokenizer)
        self._tokens: list[int] = []
        self._start = 0
        self._read = 0

    def add(self, token: int) -> str:
        """The text that this token completes; "" while a character is unfinished.

        Byte tokens wait for the end of their run: one invalid byte makes the decoder replace the whole run.
        """
        self._tokens.append(token)
        before, now = self._decode(self._start, self._read), self._decode(self._start, None)
        if now.endswith(REPLACEMENT) or token in self._byte_tokens:
            return ""
        return self._emit(before, now)

    def keep(self, token: int) -> None:
        """A token whose text is only wanted from the next `add` or `flush`."""
        self._tokens.append(token)

    def flush(self) -> str:
        """The rest, with replacement characters for bytes that never became a character."""
        return self._emit(self._decode(self._start, self._read), self._decode(self._start, None))

    def _emit(self, before: str, now: str) -> str:
        text = now[len(before) :]
        if text:
            self._start = self._read
        self._read = len(self._tokens)
        return text

    def _decode(self, start: int, end: int | None) -> str:
        return decode(self._tokenizer, self._tokens[start:end])


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """An answer's tokens as text, special tokens left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # what tokenizer.decode comes to, without its checks: a decoding step does this per row
        return str(backend.decode(tokens, skip_special_tokens=True))
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Passes text on until one of the stop strings occurs, keeping back what could be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was met."""
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        shown = self._held[: min(found)] if found else self._held[: len(self._held) - self._unsure()]
        self._held = self._held[len(shown) :]
        return shown, bool(found)

    def flush(self) -> str:
        """What was kept back."""
        text, self._held = self._held, ""
        return text

    def _unsure(self) -> int:
        lengths = [n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])]
        return max(lengths, default=0)
