"""The prompts of served versions, in the form that each was tuned with.

    raw     the text as it is, with the special tokens that the tokenizer adds; control tokens in it are control tokens
    pair    the text and a line break, as the prompts of plain pairs ({"input_text", "output_text"}) in training
    chat    the version's chat template, with the header of the answer

A base continues text (raw). What a version was tuned with is in its card: its probes are texts of pairs, or
conversations. A version without probes, such as one tuned on texts alone, continues text as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raytune_llm.data.records import Message
from raytune_llm.data.tokenizing.literal import chat_prompt, pair_prompt, raw_prompt
from raytune_llm.serving.engine.base import PromptForm, ServedModel


@dataclass(frozen=True)
class Prompt:
    """What one answer follows."""

    ids: list[int]
    form: str
    """raw, pair, chat, or tokens where the client gave token ids."""
    text: str
    """Its text, as rendered; without the special tokens that the tokenizer adds."""


def tuned_form(probes: Sequence[Any]) -> PromptForm:
    """The form of the prompts that a version was tuned with, by the probes of its card."""
    if not probes:
        return PromptForm.raw
    return PromptForm.pair if all(isinstance(probe, str) for probe in probes) else PromptForm.chat


def of_text(served: ServedModel, text: str, form: PromptForm | None = None) -> Prompt:
    """A text; None: in the version's own form. Raises InputError when its template rejects it."""
    form = form or served.prompt_form
    if form is PromptForm.chat:
        return of_chat(served, (Message("user", text),), form)
    if form is PromptForm.pair:
        found = pair_prompt(served.tokens, text, literal=False)
    else:
        found = raw_prompt(served.tokens, text)
    return Prompt(found.ids, form.value, found.text)


def of_chat(
    served: ServedModel, messages: Sequence[Message], form: PromptForm | None = None, *, opening: str = ""
) -> Prompt:
    """A conversation. A single user turn of a version tuned on pairs is the prompt of a pair, by default.

    Args:
        form: chat or pair; None is the version's own.
        opening: the beginning of the answer.

    Raises:
        InputError: the template rejects it, or it is no prompt of a pair.
    """
    is_question = len(messages) == 1 and messages[0].role == "user" and messages[0].tools is None
    if (form or served.prompt_form) is PromptForm.pair and is_question and not opening:
        found = pair_prompt(served.tokens, messages[0].content, literal=True)
        return Prompt(found.ids, PromptForm.pair.value, found.text)
    found = chat_prompt(served.tokens, messages, opening)
    return Prompt(found.ids, PromptForm.chat.value, found.text)


def of_ids(served: ServedModel, ids: list[int]) -> Prompt:
    """Token ids, unchanged."""
    return Prompt(ids, "tokens", str(served.tokens.tokenizer.decode(ids)))
