"""Ending an answer's text before its first stop string.

Each stop string is followed by the automaton of Knuth, Morris and Pratt (1977), whose table is computed as far as a
match has come; so the time is linear in the text, whatever the stop strings are and wherever the pieces fall.
"""

from __future__ import annotations

from collections import deque


class StopStrings:
    """Passes text on until one of the stop strings occurs, keeping back what could be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._matches = [_Match(text) for text in stop]
        self._held: deque[str] = deque()
        self._num_held = 0

    def add(self, text: str) -> tuple[str, bool]:
        """Text that may be shown, and whether a stop string was met."""
        if not self._matches:
            return text, False
        self._held.append(text)
        self._num_held += len(text)
        ends = [(match, end) for match in self._matches if (end := match.add(text)) is not None]
        if ends:
            num_before = self._num_held - len(text)
            return self._take(min(num_before + end - match.length for match, end in ends)), True
        return self._take(self._num_held - max(match.num_matched for match in self._matches)), False

    def flush(self) -> str:
        """What was kept back."""
        return self._take(self._num_held)

    def _take(self, count: int) -> str:
        """The first characters of what is kept back."""
        self._num_held -= count
        parts = []
        while count > 0:
            part = self._held.popleft()
            parts.append(part[:count])
            if len(part) > count:
                self._held.appendleft(part[count:])
            count -= len(part)
        return "".join(parts)


class _Match:
    """How much of one stop string the text so far ends with."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._borders = [0]
        """[n - 1]: length of the longest proper prefix of the first n characters that they also end with."""
        self.num_matched = 0

    @property
    def length(self) -> int:
        return len(self._text)

    def add(self, text: str) -> int | None:
        """The place in `text` where the stop string ends first, None where it doesn't."""
        if not self.num_matched and self._text[0] not in text:
            return None
        for place, character in enumerate(text, 1):
            self.num_matched = self._after(self.num_matched, character)
            if self.num_matched == len(self._text):
                return place
            if self.num_matched > len(self._borders):
                border = self._after(self._borders[-1], character)
                self._borders.append(border)
        return None

    def _after(self, num_matched: int, character: str) -> int:
        while num_matched and self._text[num_matched] != character:
            num_matched = self._borders[num_matched - 1]
        return num_matched + (self._text[num_matched] == character)
