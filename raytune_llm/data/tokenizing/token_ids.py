"""Token ids of a text, as transformers' tokenizers give them, by the library beneath them: encoding is most of the time
that checking data takes, and a quarter of it is their wrapper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's ids, without special tokens added."""
    backend = _backend(tokenizer)
    if backend is None:
        return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def ids_and_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], Sequence[tuple[int, int]]]:
    """The same, and the characters [start, end) of each token."""
    backend = _backend(tokenizer)
    if backend is None:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(found["input_ids"]), found["offset_mapping"]
    encoded = backend.encode(text, add_special_tokens=False)
    return list(encoded.ids), encoded.offsets


def splitting_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids and texts of the tokens at which a text falls into parts that are encoded apart: those that are looked for in
    the text itself, before anything else. None without a backend."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return {}
    return {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if not (token.normalized or token.single_word or token.lstrip or token.rstrip)
    }


def begin_of_part(
    splitting: Mapping[int, str], text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> int:
    """Where the last part of these tokens of a text begins, with its splitting token: an index of ids, 0 for the first
    part. An unknown word has the id of such a token, too, but not its text."""
    for i in range(len(ids) - 1, 0, -1):
        if ids[i] in splitting and text[slice(*offsets[i])] == splitting[ids[i]]:
            return i
    return 0


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The tokenizer of the `tokenizers` library, encoding whole texts; None where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens:
        backend.encode_special_tokens = False
    return backend
