"""The prompt that a tuned model is given of a record, and the reference answer."""

from __future__ import annotations

from raytune_llm.data.records import Chat, Preference, Rationale, Record, Supervised, Text


def question(record: Record) -> tuple[Text, str] | None:
    """Prompt and reference answer; of a chat, those of its last assistant turn, None where no answer is known."""
    match record:
        case Supervised():
            return record.prompt, record.completion
        case Rationale():
            return None if record.label is None else (record.prompt, record.label)
        case Preference():
            return record.prompt, plain(record.chosen)
        case Chat():
            last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
            return record.messages[:last], record.messages[last].content
    return None


def plain(text: Text) -> str:
    """Text or conversation as one string to read."""
    return text if isinstance(text, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in text)
