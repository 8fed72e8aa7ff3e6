"""From answer tokens to text as they are generated: whole characters only.

A character may span several tokens (byte-level BPE, byte fallback) and a decoder may strip the first token's space, so
a token can't be decoded without its neighbours. The bytes of a byte-level vocabulary are decoded as they come; for
other tokenizers, as in text-generation-inference, the last tokens are decoded without and with the new ones, and the
difference is what they add. Time is linear in the answer, whatever its tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

from tokenizers.decoders import ByteLevel

from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
WINDOW_TOKENS = 8
"""More tokens than a character has, with one that the decoder may strip a space from."""


@per_tokenizer
def byte_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens after which a run of bytes may continue; empty for vocabularies without byte fallback."""
    return frozenset(index for token, index in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token))


@per_tokenizer
def skipped_tokens(tokenizer: Any) -> frozenset[int]:
    """Ids of the special tokens, which decoding leaves out."""
    if backend_of(tokenizer) is None:
        return frozenset(tokenizer.all_special_ids)
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)


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
    backend = backend_of(tokenizer)
    is_byte_level = backend is not None and isinstance(backend.decoder, ByteLevel)
    return ByteLevelDetokenizer(tokenizer) if is_byte_level else WindowDetokenizer(tokenizer)


class ByteLevelDetokenizer:
    """For byte-level BPE, each letter of whose tokens stands for a byte."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = backend_of(tokenizer)
        self._skipped = skipped_tokens(tokenizer)
        self._letters = _byte_letters()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept: list[int] = []

    def add(self, token: int) -> str:
        self._kept.append(token)
        return self._decoded(final=False)

    def keep(self, token: int) -> None:
        self._kept.append(token)

    def flush(self) -> str:
        return self._decoded(final=True)

    def _decoded(self, *, final: bool) -> str:
        kept, self._kept = self._kept, []
        return self._utf8.decode(b"".join(map(self._data, kept)), final=final)

    def _data(self, token: int) -> bytes:
        piece = None if token in self._skipped else self._backend.id_to_token(token)
        if piece is None:
            return b""
        try:
            return bytes([self._letters[letter] for letter in piece])
        except KeyError:  # an added token with other letters, which its decoder takes as they are
            return str(piece).encode()


class WindowDetokenizer:
    """For all others, also those written in Python (ByT5's, Mistral's). One invalid byte makes a byte-fallback decoder
    replace a whole run of bytes, so runs of byte tokens are held back until they end."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._skipped, self._byte_tokens = skipped_tokens(tokenizer), byte_tokens(tokenizer)
        self._read: list[int] = []
        """The last tokens whose text was returned."""
        self._before = ""
        """Their text."""
        self._unread: list[int] = []

    def add(self, token: int) -> str:
        self.keep(token)
        if token in self._byte_tokens or token in self._skipped:
            return ""
        now = self._now()
        if now.endswith(REPLACEMENT) and len(self._unread) < WINDOW_TOKENS:
            return ""
        return self._advance(now)

    def keep(self, token: int) -> None:
        if token not in self._skipped:
            self._unread.append(token)

    def flush(self) -> str:
        return self._advance(self._now())

    def _now(self) -> str:
        return decode(self._tokenizer, self._read + self._unread)

    def _advance(self, now: str) -> str:
        text = now[len(self._before) :]
        if text:
            self._read, self._unread = self._unread[-WINDOW_TOKENS:], []
            self._before = decode(self._tokenizer, self._read)
        else:
            del self._unread[:-WINDOW_TOKENS]
        return text


def decode(tokenizer: Any, tokens: list[int]) -> str:
    """An answer's tokens as text, special tokens left out."""
    backend = backend_of(tokenizer)
    if backend is not None:  # what tokenizer.decode comes to, without its checks: a decoding step does this per row
        return str(backend.decode(tokens, skip_special_tokens=True))
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def backend_of(tokenizer: Any) -> Any:
    """The tokenizers library's own object; None for a tokenizer written in Python."""
    return getattr(tokenizer, "backend_tokenizer", None)


@lru_cache(maxsize=1)
def _byte_letters() -> Mapping[str, int]:
    """The byte that each letter of a byte-level token stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
