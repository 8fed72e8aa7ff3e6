"""Prompts and answers of records, and what makes two texts the same when records are compared."""

from __future__ import annotations

from collections.abc import Sequence

from raytune_llm.data.records import Chat, Message, Preference, Rationale, Record, Supervised, Text

FEW_PROMPTS = 20
"""Fewer different prompts than this, for more records, are instructions, not questions."""


def is_instruction(prompts: Sequence[str]) -> bool:
    """Whether records with these prompts differ by their answers: one instruction, or a few, for all of them."""
    different = len(set(prompts))
    return different < FEW_PROMPTS and different < len(prompts) / 2


def answer_of(record: Record) -> Text | None:
    """The answer to learn, where the record has exactly one."""
    match record:
        case Supervised():
            return record.completion
        case Rationale():
            return record.label
        case Preference():
            return record.chosen
        case Chat():
            return next(message.content for message in reversed(record.messages) if message.role == "assistant")
    return None


def prompt_of(record: Record) -> Text:
    """The prompt of the record's answer; of a chat, all turns before the last assistant turn."""
    if not isinstance(record, Chat):
        return record.prompt
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return record.messages[:last]


def text_key(text: Text | None) -> str:
    """Text for comparison: whitespace and case don't count."""
    if isinstance(text, tuple):
        text = "\n".join(f"{message.role}: {message.content}" for message in text if isinstance(message, Message))
    return " ".join((text or "").split()).casefold()
