"""The values of a record's JSON object: which keys it has, which of them nobody read, and what counts as text.

Text is what a tokenizer takes and a reader sees: no half of a character pair (a lone surrogate), no NUL, and more than
white space and invisible characters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from raytune_llm.data.records import LONGEST_SHOWN, RecordError, quoted, show

VISIBLE = re.compile(
    "[^\\s\\x00-\\x1f\\x7f-\\xa0\\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    "\u205f-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""A character that is neither white space nor a control, format or filler character."""
SURROGATE = re.compile("[\ud800-\udfff]")

_FILLED = "a string that is not empty"
EXPECTED = {
    **dict.fromkeys(("input_text", "prompt", "instruction"), f"{_FILLED}: the record has no prompt"),
    **dict.fromkeys(("output_text", "completion", "output"), f"{_FILLED}: the record has no completion"),
    **dict.fromkeys(("candidate_0", "candidate_1", "chosen", "rejected"), f"{_FILLED}: the record lacks an answer"),
    "choice": "0 or 1, the number of the preferred candidate",
    "rationale": f"{_FILLED}, or null",
    "text": _FILLED,
    "input": 'an object, {"messages": […]}',
    "completions": "a list of two, one with score 1 and one with score 0",
}
"""What a key should hold, for messages."""

_WRITE_TURNS = "a conversation, for example messages, to have it"
_TEXT_ONLY = "text: nothing else is read"
MEANINGS = {
    "functions": ("OpenAI's older form of tools", "tools in its place"),
    "tools": ("what the assistant may call", _WRITE_TURNS),
    "system": ("a system prompt", _WRITE_TURNS),
    "history": ("earlier turns", _WRITE_TURNS),
    "weight": ("how much this counts", "it on assistant turns only, 0 or 1"),
    "train": ("whether this is learned", "it on assistant turns only, true or false"),
    "chat_template_kwargs": ("options of the chat template", "model.chat_template, which is for all records"),
    "fileData": ("media", _TEXT_ONLY),
    "inlineData": ("media", _TEXT_ONLY),
    "functionCall": ("a call in Gemini's form", "messages with tool_calls"),
    "functionResponse": ("a tool's result in Gemini's form", "messages with a tool turn"),
    **dict.fromkeys(("image", "images", "image_url", "audio", "audios", "video", "videos"), ("media", _TEXT_ONLY)),
}
"""Keys that would change what is learned, refused where they are not read: what each is, and what to write."""
TURN_MEANINGS = {
    "function_call": ("OpenAI's older form of a call", "tool_calls in its place"),
    "tool_calls": ("calls of tools", "them in assistant turns only"),
    "tool_call_id": ("the call that a result answers", "it in tool turns only"),
    "train_detail": ("which characters of the turn are learned", "train, which is for the whole turn"),
    "refusal": ("a refusal to answer", "it as the turn's content"),
}
"""The same, of turns."""
THOUGHTS_LEFT = "(thoughts)"
"""What stands among a record's unread keys where thoughts were left out."""
NEUTRAL: tuple[object, ...] = (None, "", [], {})
"""Values of such keys that mean nothing."""


class Row:
    """One JSON object as a dialect reads it: keys that are null or left out are absent."""

    __slots__ = ("ignore", "unused", "values")

    def __init__(self, values: Mapping[str, Any], ignore: frozenset[str] = frozenset()) -> None:
        self.values, self.ignore = values, ignore
        self.unused: list[str] = []
        """Printable names of keys below the row's own that nothing reads: "messages[].id"."""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str) -> Any:
        """The key's value, None where it is absent or says nothing ("", [], {})."""
        value = self.values.get(key)
        return None if value in NEUTRAL else value

    def text(self, key: str) -> str:
        """The key's text. Raises RecordError where it is none."""
        value = self.values[key]
        if isinstance(value, str):
            return as_text(value, key, EXPECTED.get(key, "a string"))
        remedy = "a string; put it in quotes" if isinstance(value, int | float) else EXPECTED.get(key, "a string")
        raise RecordError(key, show(value), remedy)

    def texts(self, *keys: str) -> list[str]:
        """The text of each key."""
        return [self.text(key) for key in keys]

    def present(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Of an object in the row, the keys that are neither null nor left out."""
        return {key: value for key, value in item.items() if value is not None and key not in self.ignore}

    def leave(self, item: Mapping[str, Any], read: Iterable[str], at: str) -> None:
        """Note the keys of an object at `at` ("messages[0]") that are not among `read`.

        Raises:
            RecordError: one has a meaning that would be lost.
        """
        read = frozenset(read)
        for key, value in item.items():
            if key not in read:
                check_unread(key, value, read - item.keys(), f"{at}.")
                self.unused.append(f"{re.sub('[0-9]+', '', at)}.{printable(key)}")


def as_text(value: str, key: str, expected: str) -> str:
    """The value, which is a string. Raises RecordError, saying what is `expected`, where it is no text."""
    if not VISIBLE.search(value):
        invisible = value.strip() and f"only invisible characters, {value[:LONGEST_SHOWN]!a}"
        raise RecordError(key, invisible or show(value), expected)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"a lone surrogate, {value[error.start]!r}, at character {error.start + 1}"
        remedy = "text: half of a character pair is no character, and no tokenizer takes it; remove it"
        raise RecordError(key, half, remedy) from None
    if "\0" in value:
        where = f"a NUL character at character {value.index(chr(0)) + 1}"
        raise RecordError(key, where, "text without NUL characters; remove them")
    return value


def printable(key: str) -> str:
    """A key as it is, shortened and escaped where it must be."""
    return key if 0 < len(key) <= 40 and key.isprintable() else quoted(key)


def check_unread(key: str, value: object, optional: Iterable[str], at: str = "") -> None:
    """Whether a key that nothing reads may stay unread.

    Raises:
        RecordError: it has a meaning that would be lost, it is nearly one of `optional`, or it is no text.
    """
    name = f"{at}{printable(key)}"
    if not key.isascii() and SURROGATE.search(key):
        raise RecordError(name, "a key with a lone surrogate", "text: half of a character pair is no character")
    if meaning := MEANINGS.get(key) or (TURN_MEANINGS.get(key) if at else None):
        if value in NEUTRAL:
            return
        raise RecordError(name, f"{show(value)}, {meaning[0]}", f"{meaning[1]}; {left_out(key)}")
    if near := _near(key, tuple(sorted(optional))):
        raise RecordError(name, "an unknown key", f"a known one; did you mean {near!r}? Else {left_out(key)}")


@lru_cache(maxsize=4096)
def _near(key: str, optional: tuple[str, ...]) -> str | None:
    """The known key that this one is probably meant to be."""
    if len(key) > LONGEST_KEY:
        return None
    return next(iter(difflib.get_close_matches(key.casefold(), optional, n=1, cutoff=0.8)), None)


INDEX_KEYS = ("Unnamed: 0", "Unnamed: 0.1", "__index_level_0__")
"""The rows' numbers, as pandas writes them to CSV, a second time too, and to Parquet."""
LONGEST_KEY = 60
"""No longer key is taken for a misspelt one."""


def left_out(key: str) -> str:
    """How to do without a key, for messages."""
    return f"data.ignore=[{printable(key)}] leaves it out"


def keys_of(value: object) -> Iterator[str]:
    """Every key of a JSON value, at any depth."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def strings(value: object) -> Iterator[str]:
    """Every string of a JSON value, keys included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
