"""A single token's text and bytes, for log-probabilities.

A token may be a part of a character, and a decoder may strip the first token's space or join words by spaces, so the
text of a token decoded alone isn't always what it adds to an answer. Its bytes are. Which kind of vocabulary a
tokenizer has is found by what its decoder makes of "é", two bytes in UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
from raytune_llm.serving.engine.detokenize import BYTE_TOKEN, backend_of, decode


@per_tokenizer
def decode_one(tokenizer: Any, token: int) -> str:
    """The text of a single token; special tokens by name."""
    return str(tokenizer.decode([token])) or decode(tokenizer, [token])


@per_tokenizer
def data_of_one(tokenizer: Any, token: int) -> bytes:
    """A single token's own bytes, also those of a part of a character; special tokens by name.

    Joined over an answer they are its text, with the space before its first word where a decoder strips that.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # rows of the vocabulary that have no token
        return b""
    if token in tokenizer.added_tokens_decoder:
        return str(tokenizer.added_tokens_decoder[token].content).encode()
    bytes_of_letters, has_byte_tokens = _vocabulary(tokenizer)
    if bytes_of_letters and all(letter in bytes_of_letters for letter in piece):
        return bytes(bytes_of_letters[letter] for letter in piece)
    if has_byte_tokens and BYTE_TOKEN.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return decode(tokenizer, [token, token]).removeprefix(decode(tokenizer, [token])).encode()


@per_tokenizer
def _vocabulary(tokenizer: Any) -> tuple[Mapping[str, int], bool]:
    """The byte that each letter of a token stands for, empty where tokens are text; whether tokens like <0xE2> are
    bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    backend = backend_of(tokenizer)
    decoder = None if backend is None else backend.decoder
    if decoder is not None:
        is_byte_level = decoder.decode(["Ã", "©"]) == "é"
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()} if is_byte_level else {}
        return letters, decoder.decode(["<0xC3>", "<0xA9>"]) == "é"
    if backend is None and tokenizer.tokenize("é") == ["Ã", "©"]:  # ByT5: letters of Latin-1
        return {chr(byte): byte for byte in range(256)}, False
    return {}, False
