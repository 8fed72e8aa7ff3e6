"""Log-probabilities in the format of text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytune_llm.serving.engine.base import TokenLogprob, TopToken


def logprob_lists(logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
    """tokens, token_logprobs and top_logprobs of text completions. The chosen token is among the likeliest, as
    OpenAI's."""
    return {
        "tokens": [token_name(entry) for entry in logprobs],
        "token_logprobs": [entry.logprob for entry in logprobs],
        "top_logprobs": [
            {token_name(top): top.logprob for top in entry.top} | {token_name(entry): entry.logprob}
            for entry in logprobs
        ],
    }


def token_name(token: TokenLogprob | TopToken) -> str:
    r"""A token's text; that of a part of a character by its bytes, as OpenAI writes it: bytes:\xe2\x80."""
    return name_of(token.data)


def name_of(data: bytes) -> str:
    """The same of a token's own bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
