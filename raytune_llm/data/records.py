"""The record kinds: what a method learns from, whatever the dialect it was written in (data/dialects/dialect.py).

Records are frozen and hashable. Media are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool (a tool's result)."""
    content: str
    """Text; may be '' in an assistant turn that has tool_calls."""
    tool_calls: str | None = None
    """Of an assistant turn, JSON in OpenAI's form: [{"type": "function", "id"?, "function": {"name", "arguments"}}],
    arguments being an object."""
    call_id: str | None = None
    """Of a tool turn, the id of the call that it answers."""
    name: str | None = None
    """Of a tool turn, the name of the function that was called."""
    tools: str | None = None
    """Of the first turn only: what the assistant may call, JSON in OpenAI's form, [{"type": "function", "function":
    {"name", …}}]."""
    learn: bool = True
    """Of an assistant turn, whether it carries loss."""


Text = str | tuple[Message, ...]
"""Plain text, or turns of a conversation."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """A prompt and the completion to learn."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text to learn whole, without a prompt."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with at least one assistant turn to learn; it begins with a system or a user turn."""

    messages: tuple[Message, ...]

    @property
    def tools(self) -> str | None:
        """What the assistant may call, as in Message.tools."""
        return self.messages[0].tools


@dataclass(frozen=True, slots=True)
class Preference:
    """Two different answers to one prompt, one of them preferred; all three plain, or all three conversational."""

    prompt: Text
    chosen: Text
    rejected: Text
    place: int | None = field(default=None, compare=False)
    """Which of the two candidates was preferred, 0 or 1, where the record gives them in an order."""


@dataclass(frozen=True, slots=True)
class Rationale:
    """A prompt with, where known, its label and the reasoning that leads there; None where a teacher is to write it."""

    prompt: str
    label: str | None
    rationale: str | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without an answer, for the policy to complete; a conversation ends in a user turn or a tool's result."""

    prompt: Text


Record = Supervised | PlainText | Chat | Preference | Rationale | Prompt


class RecordError(ValueError):
    """One key of one record is missing or has a wrong value."""

    def __init__(self, key: str, found: str, expected: str) -> None:
        super().__init__(f"{key}: found {found}, expected {expected}")
        self.key, self.found, self.expected = key, found, expected


LONGEST_SHOWN = 40
"""Characters of a text that a message quotes."""
KEYS_SHOWN = 8


def quoted(text: str) -> str:
    """A text in quotes, shortened, with control and invisible characters escaped."""
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]!r}…"


def show_keys(keys: Iterable[object]) -> str:
    """The first few keys of an object, quoted, and how many more there are."""
    keys = list(keys)
    first = ", ".join(quoted(str(key)) for key in islice(keys, KEYS_SHOWN))
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return (first or "none") + more


def show(value: object) -> str:
    """A short, printable description of a record's value."""
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return f"an object with keys {show_keys(value)}" if value else "an object without keys"
    return f"a list of {len(value)}" if isinstance(value, list) else f"a {type(value).__name__}"
