"""Prompts whose texts come from clients: the names of control tokens in them are encoded as text.

A chat template writes control tokens such as <|im_end|> between the turns, and a tokenizer reads them wherever they
are in a text. In a client's message they would end its turn and begin another, so there they become the tokens of the
text "<|im_end|>". Texts without such names are encoded as in training. Non-special added tokens stay tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.per_tokenizer import per_tokenizer
from raytune_llm.data.tokenizing.rendering import render
from raytune_llm.data.tokenizing.template import added_tokens
from raytune_llm.data.tokenizing.token_ids import token_ids
from raytune_llm.data.tokenizing.tokens import Tokens, stripped
from raytune_llm.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_SHIELD = 0xF0000
"""From here on characters are for private use; one is in the place of each control token's name while a template is
rendered."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens, and the text that they are of."""

    ids: list[int]
    text: str
    """What a template made of it; without the special tokens that the tokenizer adds."""


def raw_prompt(tokens: Tokens, text: str) -> EncodedPrompt:
    """A text as it is, with the special tokens that the tokenizer adds, as transformers encodes it. Control tokens in
    it are control tokens."""
    return EncodedPrompt(_with_added(tokens, token_ids(tokens.tokenizer, text)), text)


def pair_prompt(tokens: Tokens, text: str, *, literal: bool) -> EncodedPrompt:
    """A text in the form of the prompts of plain pairs. `literal`: control tokens in it are text."""
    end = "" if tokens.is_encoder_decoder else "\n"
    if literal and tokens.control_tokens_in(text):
        return EncodedPrompt(_with_added(tokens, _literal_ids(tokens, text + end)), text + end)
    return EncodedPrompt(tokens.prompt(text), text + end)


def chat_prompt(tokens: Tokens, messages: Sequence[Message], opening: str = "") -> EncodedPrompt:
    """A conversation in the form of the chat template, control tokens in its texts being text. `opening`: the beginning
    of the answer, after the template's header.

    Raises:
        InputError: the template rejects it, or the tokenizer can't encode such tokens as text.
    """
    tokenizer, turns = tokens.tokenizer, stripped(messages)
    found = dict.fromkeys(name for turn in turns for text in _texts(turn) for name in tokens.control_tokens_in(text))
    if not found:
        text = render(tokenizer, turns, generation_prompt=True) + opening
        ids = token_ids(tokenizer, text)
        return EncodedPrompt(_with_added(tokens, ids) if tokens.is_encoder_decoder else ids, text)
    shields = dict(zip(found, _unused_characters(turns, len(found)), strict=True))
    shielded = render(tokenizer, [_replaced(turn, shields) for turn in turns], generation_prompt=True) + opening
    ids = _mixed_ids(tokens, shielded, shields)
    text = _replaced_text(shielded, {shield: name for name, shield in shields.items()})
    return EncodedPrompt(_with_added(tokens, ids) if tokens.is_encoder_decoder else ids, text)


def _mixed_ids(tokens: Tokens, text: str, shields: dict[str, str]) -> list[int]:
    """Ids of a rendered text: a part between two control tokens that has shields is encoded as text."""
    names = {shield: name for name, shield in shields.items()}
    _require_parts(tokens)
    ids: list[int] = []
    plain = ""
    for part in _parts(tokens, text):
        if any(shield in part for shield in names):
            ids += token_ids(tokens.tokenizer, plain) if plain else []
            ids, plain = ids + _literal_ids(tokens, _replaced_text(part, names)), ""
        else:
            plain += part
    return ids + (token_ids(tokens.tokenizer, plain) if plain else [])


def _parts(tokens: Tokens, text: str) -> list[str]:
    """The text, split before and after each control token."""
    pattern = "|".join(map(re.escape, sorted(tokens.control_tokens_in(text), key=len, reverse=True)))
    parts = re.split(f"({pattern})", text) if pattern else [text]
    return [part for part in parts if part]


def _literal_ids(tokens: Tokens, text: str) -> list[int]:
    """Ids of a text in which no special token is read. Raises InputError where the tokenizer can't do that."""
    tokenizer = tokens.tokenizer
    backend = _literal_backend(tokenizer)
    if backend is None:
        ids = list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))
    else:
        ids = list(backend.encode(text, add_special_tokens=False).ids)
    names = tokens.control_tokens_in(text)
    read = {tokenizer.convert_tokens_to_ids(name) for name in names} - {tokenizer.unk_token_id}
    if read & set(ids):
        raise _refusal(names)
    return ids


def _require_parts(tokens: Tokens) -> None:
    """Raise InputError where parts of a text that control tokens separate can't be encoded apart."""
    token, words = str(tokens.tokenizer.eos_token), "user\na b"
    whole = token_ids(tokens.tokenizer, token + words + token)
    eos = token_ids(tokens.tokenizer, token)
    if whole != eos + _literal_ids(tokens, words) + eos:
        raise _refusal([token])


def _refusal(names: Sequence[str]) -> InputError:
    return InputError(
        f"the text has {', '.join(names[:3])}, which this model's tokenizer reads as a control token and can't encode "
        "as text; leave it out"
    )


@per_tokenizer
def _literal_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of the tokenizer's backend that reads no special tokens; None where there is no backend. Of a large
    vocabulary it takes a second to make and some 50 MB."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    copied = type(backend).from_str(backend.to_str())
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = True
    return copied


@per_tokenizer
def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    return added_tokens(tokenizer)


def _with_added(tokens: Tokens, ids: list[int]) -> list[int]:
    """The ids with the special tokens that the tokenizer adds: those at the end for encoder-decoder bases alone, since
    a causal base continues the prompt."""
    before, after = _added(tokens.tokenizer)
    ids = ids if ids[: len(before)] == before else before + ids
    if not tokens.is_encoder_decoder or not after or ids[-len(after) :] == after:
        return ids
    return ids + after


def _texts(turn: Message) -> list[str]:
    return [text for text in (turn.content, turn.tool_calls, turn.call_id, turn.name, turn.tools) if text is not None]


def _replaced(turn: Message, shields: dict[str, str]) -> Message:
    def put(text: str | None) -> str | None:
        return None if text is None else _replaced_text(text, shields)

    return replace(
        turn,
        content=_replaced_text(turn.content, shields),
        tool_calls=put(turn.tool_calls),
        call_id=put(turn.call_id),
        name=put(turn.name),
        tools=put(turn.tools),
    )


def _replaced_text(text: str, by: dict[str, str]) -> str:
    """The longest names first, since one may be in another."""
    for name in sorted(by, key=len, reverse=True):
        text = text.replace(name, by[name])
    return text


def _unused_characters(turns: Sequence[Message], number: int) -> list[str]:
    used = {character for turn in turns for text in _texts(turn) for character in text}
    free = (chr(code) for code in range(FIRST_SHIELD, FIRST_SHIELD + 0xFFFD) if chr(code) not in used)
    return [next(free) for _ in range(number)]
