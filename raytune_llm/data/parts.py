"""The parts of a record, as texts to compare and to look through."""

from __future__ import annotations

from collections.abc import Iterator

from raytune_llm.data.question import last_answer, turn_text
from raytune_llm.data.records import Chat, PlainText, Preference, Rationale, Record, Supervised, Text

MARKS = " .?!,;:…\"'。？！，；："
FEW_PROMPTS = 20
"""Fewer different prompts than this, for more records, are instructions, not questions."""


def answer_of(record: Record) -> Text | None:
    """The answer to learn, where the record has exactly one; of a chat, its last one."""
    match record:
        case Supervised():
            return record.completion
        case Rationale():
            return record.label
        case Preference():
            return record.chosen
        case Chat():
            last = last_answer(record.messages)
            return None if last is None else record.messages[last].content
    return None


def prompt_of(record: Record) -> Text:
    """The prompt of the record's answer; of a chat, all turns before its last answer; a plain text itself."""
    if isinstance(record, PlainText):
        return record.text
    if not isinstance(record, Chat):
        return record.prompt
    last = last_answer(record.messages)
    return record.messages if last is None else record.messages[:last]


def texts_of(record: Record) -> Iterator[str]:
    """All texts of a record."""
    match record:
        case Chat():
            yield from map(turn_text, record.messages)
        case Supervised():
            yield from (record.prompt, record.completion)
        case PlainText():
            yield record.text
        case Rationale():
            yield from (text for text in (record.prompt, record.label, record.rationale) if text is not None)
        case Preference():
            for text in (record.prompt, record.chosen, record.rejected):
                yield from _turns(text)
        case _:
            yield from _turns(record.prompt)


def _turns(text: Text) -> Iterator[str]:
    yield from (text,) if isinstance(text, str) else map(turn_text, text)


def text_key(text: str | None) -> str:
    """Text for comparison: whitespace and case don't count."""
    return " ".join((text or "").split()).casefold()


def prompt_key(text: str) -> str:
    """A prompt for comparison: nor do punctuation marks at its ends count."""
    key = text_key(text)
    return key.strip(MARKS) or key


def is_instruction(num_prompts: int, num_records: int) -> bool:
    """Whether records with so many different prompts differ by their answers: one instruction, or a few, for all."""
    return num_prompts < FEW_PROMPTS and num_prompts < num_records / 2
