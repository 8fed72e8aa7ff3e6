"""JSON values: of one line, or one after another in a text that goes over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from raytune_llm.data.reading.problems import BadLine

READ_CHARACTERS = 1 << 20
LONGEST_VALUE = 64 << 20
"""Characters of one value."""
EXCERPT = 20
SPACE, COMMAS = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
UNREAD = "; the rest of the file isn't read"


class _Repeated(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Repeated(f"the key {twice[:40]!r} occurs twice in one object")
    return found


def _constant(name: str) -> Any:
    raise _Repeated(f"{name} is no JSON value")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def decoded(text: str) -> object | BadLine:
    """The JSON value of a line."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        return BadLine(error.colno, error.msg.lower(), _around(text, error.pos))
    except RecursionError:
        return BadLine(1, "nested too deeply", text[:40])
    except ValueError as error:  # a key twice, NaN, an integer of thousands of digits
        return BadLine(None, str(error).partition(";")[0])


class _Text:
    """A text that is read as far as it is needed; `at` is where the next value begins, in line `line`."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Go past what the pattern matches here, reading on while that is all there is."""
        while True:
            match = pattern.match(self.text, self.at)
            self.go_to(match.end() if match else self.at)
            if self.at < len(self.text) or not self.more():
                return

    def go_to(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def more(self) -> bool:
        """Read on; False at the end, or where a value is longer than any record."""
        left = len(self.text) - self.at
        read = "" if self.ended or left > LONGEST_VALUE else self._stream.read(max(READ_CHARACTERS, left))
        self.ended = self.ended or not read
        self.text, self.at = self.text[self.at :] + read, 0
        return bool(read)

    def value(self) -> object | BadLine:
        """The value that begins here; `at` is then after it. A BadLine where there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self.more():  # a number could have more digits
                    self.go_to(min(end, len(self.text)))
                    return value
            except json.JSONDecodeError as error:
                if not self.more():
                    return BadLine(None, f"not JSON: {error.msg.lower()}{UNREAD}", _around(error.doc, error.pos))
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
                return BadLine(None, reason + UNREAD)


def whole_values(stream: IO[str]) -> Iterator[tuple[int, object | BadLine]]:
    """The elements of a JSON array, or objects one after another, with the line where each begins. Where the text is no
    JSON there is a BadLine, the last one."""
    text = _Text(stream)
    text.skip(SPACE)
    in_array = text.text.startswith("[", text.at)
    if in_array:
        text.go_to(text.at + 1)
    between = COMMAS if in_array else SPACE
    while True:
        text.skip(between)
        if in_array and text.text.startswith("]", text.at):
            text.go_to(text.at + 1)
            text.skip(SPACE)
            if text.at < len(text.text):
                near = _around(text.text, text.at)
                yield text.line, BadLine(None, "more text after the end of the JSON array; expected one array", near)
            return
        if text.at == len(text.text):
            if in_array:
                yield text.line, BadLine(None, "the JSON array doesn't end; is the file whole?")
            return
        line, value = text.line, text.value()
        yield line, value
        if isinstance(value, BadLine):
            return


def _around(text: str, at: int) -> str:
    return text[max(0, at - EXCERPT) : at + EXCERPT]
