"""From answer tokens to text as they are generated: whole characters only, and nothing at or after a stop string.

A character may span several tokens (byte-level BPE, byte fallback) and a decoder may strip the first token's space, so
a token can't be decoded without its neighbours. tokenizers' DecodeStream keeps that context. Two things it leaves to
its caller: it has no flush, and one invalid byte makes a byte-fallback decoder replace the whole run of bytes, after
DecodeStream has given out the beginning of the run; so runs of byte tokens are held back here until they end.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@lru_cache(maxsize=256)
def held_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens after which a run of bytes may continue: byte tokens, and special tokens, which decoding skips.

    Empty for vocabularies without byte fallback.
    """
    byte_tokens = {index for token, index in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token)}
    special_tokens = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(byte_tokens | special_tokens if byte_tokens else ())


class Detokenizer(Protocol):
    """Joined, what `add` and `flush` return is `tokenizer.decode` of all tokens, special ones skipped."""

    def add(self, token: int) -> str:
        """The text that this token completes; "" while a character is unfinished."""
        ...

    def keep(self, token: int) -> None:
        """A token whose text is only wanted from the next `add` or `flush`."""
        ...

    def flush(self) -> str:
        """The rest, with replacement characters for bytes that never became a character."""
        ...


def make_detokenizer(tokenizer: Any) -> Detokenizer:
    """For one answer."""
    return WindowDetokenizer(tokenizer) if _backend(tokenizer) is None else StreamDetokenizer(tokenizer)


class StreamDetokenizer:
    """By tokenizers' DecodeStream."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = _backend(tokenizer)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held_tokens = held_tokens(tokenizer)
        self._tokens: list[int] = []
        self._num_read = 0
        """Tokens that the stream has read."""
        self._num_characters = 0
        """Characters returned so far."""

    def add(self, token: int) -> str:
        self._tokens.append(token)
        if token in self._held_tokens:
            return ""
        unread = self._tokens[self._num_read :]
        self._num_read = len(self._tokens)
        try:
            text = self._stream.step(self._backend, unread) or ""
        except Exception:  # it has no narrower class for a decoder that changes text which it gave before
            self._stream = DecodeStream(self._tokens, skip_special_tokens=True)
            text = self._rest()
        self._num_characters += len(text)
        return text

    def keep(self, token: int) -> None:
        self._tokens.append(token)

    def flush(self) -> str:
        text = self._rest()
        self._num_characters += len(text)
        return text

    def _rest(self) -> str:
        whole: str = self._backend.decode(self._tokens, skip_special_tokens=True)
        return whole[self._num_characters :]


class WindowDetokenizer:
    """For tokenizers written in Python (ByT5's, Mistral's), which DecodeStream can't read.

    As in text-generation-inference, a window of the last tokens is decoded twice, without and with the new ones; the
    difference is what they add.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._held_tokens = held_tokens(tokenizer)
        self._tokens: list[int] = []
        self._start = 0
        self._read = 0

    def add(self, token: int) -> str:
        self._tokens.append(token)
        if token in self._held_tokens:
            return ""
        before, now = self._decode(self._start, self._read), self._decode(self._start, None)
        return "" if now.endswith(REPLACEMENT) else self._advance(before, now)

    def keep(self, token: int) -> None:
        self._tokens.append(token)

    def flush(self) -> str:
        return self._advance(self._decode(self._start, self._read), self._decode(self._start, None))

    def _advance(self, before: str, now: str) -> str:
        text = now[len(before) :]
        if text:
            self._start = self._read
        self._read = len(self._tokens)
        return text

    def _decode(self, start: int, end: int | None) -> str:
        return decode(self._tokenizer, self._tokens[start:end])


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """An answer's tokens as text, special tokens left out."""
    backend = _backend(tokenizer)
    if backend is not None:  # what tokenizer.decode comes to, without its checks: a decoding step does this per row
        return str(backend.decode(tokens, skip_special_tokens=True))
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _backend(tokenizer: Any) -> Any:
    """The tokenizers library's own object; None for a tokenizer written in Python."""
    return getattr(tokenizer, "backend_tokenizer", None)


class StopStrings:
    """Passes text on until one of the stop strings occurs, keeping back what could be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was met."""
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        shown = self._held[: min(found)] if found else self._held[: len(self._held) - self._num_unsure()]
        self._held = self._held[len(shown) :]
        return shown, bool(found)

    def flush(self) -> str:
        """What was kept back."""
        text, self._held = self._held, ""
        return text

    def _num_unsure(self) -> int:
        """Characters at the end that a stop string may begin with."""
        lengths = [n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])]
        return max(lengths, default=0)
