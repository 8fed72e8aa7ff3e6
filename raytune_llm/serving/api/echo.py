"""A prompt at the beginning of a text completion (echo), with its tokens' places and log-probabilities."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raytune_llm.data.tokenizing.token_ids import ids_and_offsets
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.api.logprobs import logprob_lists, name_of
from raytune_llm.serving.engine.base import ServedModel, TokenLogprob
from raytune_llm.serving.engine.prompts import Prompt
from raytune_llm.serving.engine.token_bytes import data_of_one

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Echo:
    """A prompt as its answer repeats it."""

    text: str
    first: str
    """The text of its first token, which has no log-probability."""
    offsets: list[int]
    """Where each of its tokens begins in the text, characters; one that isn't in the text, at its start."""

    def logprobs(self, logprobs: Sequence[TokenLogprob | None]) -> dict[str, list[Any]]:
        """In the format of text completions. Raises ApiError when the engine has none."""
        if len(logprobs) != len(self.offsets):
            raise ApiError(
                400,
                "log-probabilities of the prompt (echo with logprobs) are not offered for this model; leave out one",
                code="unsupported_parameter",
                param="echo",
            )
        rest = logprob_lists([entry for entry in logprobs[1:] if entry is not None])
        return {
            "tokens": [self.first, *rest["tokens"]],
            "token_logprobs": [None, *rest["token_logprobs"]],
            "top_logprobs": [None, *rest["top_logprobs"]],
            "text_offset": self.offsets,
        }


def echo_of(served: ServedModel, prompt: Prompt) -> Echo:
    tokenizer = served.tokens.tokenizer
    return Echo(prompt.text, name_of(data_of_one(tokenizer, prompt.ids[0])), _offsets(tokenizer, prompt))


def _offsets(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """By the tokenizer's own account of the text; where that has other tokens, by the lengths of their texts."""
    try:
        ids, spans = ids_and_offsets(tokenizer, prompt.text)
    except NotImplementedError:  # tokenizers written in Python have no such account
        ids, spans = [], []
    added = len(prompt.ids) - len(ids)
    if added >= 0 and prompt.ids[added:] == ids and ids:
        return [0] * added + [start for start, _ in spans]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, place = [], 0
    for index in prompt.ids:
        offsets.append(min(place, len(prompt.text)))
        place += len(decoder.decode(data_of_one(tokenizer, index)))
    return offsets
