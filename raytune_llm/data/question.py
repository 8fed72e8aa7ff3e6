"""The prompt that a tuned model is given of a record, and the reference answer."""

from __future__ import annotations

from collections.abc import Sequence

from raytune_llm.data.records import Chat, Message, Preference, Rationale, Record, Supervised, Text


def question(record: Record) -> tuple[Text, str] | None:
    """Prompt and reference answer; of a chat, those of its last assistant turn that is learned and is text. None where
    no answer is known."""
    match record:
        case Supervised():
            return record.prompt, record.completion
        case Rationale():
            return None if record.label is None else (record.prompt, record.label)
        case Preference():
            return record.prompt, plain(record.chosen)
        case Chat():
            last = last_answer(record.messages)
            return None if last is None else (record.messages[:last], record.messages[last].content)
    return None


def last_answer(messages: Sequence[Message]) -> int | None:
    """The index of the last assistant turn that is learned and is text, without a call of a tool."""
    for i in range(len(messages) - 1, -1, -1):
        turn = messages[i]
        if turn.role == "assistant" and turn.learn and turn.tool_calls is None:
            return i
    return None


def plain(text: Text) -> str:
    """Text or conversation as one string to read."""
    return text if isinstance(text, str) else "\n".join(f"{turn.role}: {turn_text(turn)}" for turn in text)


def turn_text(turn: Message) -> str:
    """What a turn consists of, its tool calls as JSON."""
    return turn.content if turn.tool_calls is None else f"{turn.content}\n{turn.tool_calls}".strip()
