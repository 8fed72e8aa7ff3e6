"""Text for a terminal of any width: pieces with a style, as lines that fit. What draws them is terminal.py."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
THOUSANDS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
MORE = "…"


@dataclass(frozen=True)
class Piece:
    """Text of one style."""

    text: str
    style: str = ""
    """Names of colours and of bold or dim, or nothing."""


Line = tuple[Piece, ...]


def plain(lines: Sequence[Line]) -> str:
    """Lines without their styles, for what is no terminal."""
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


def cells(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cc", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def clipped(text: str, width: int) -> str:
    """A text that takes at most so many columns."""
    if cells(text) <= width:
        return text
    kept = ""
    for character in text:
        if cells(kept) + _cells(character) > width - 1:
            break
        kept += character
    return kept + MORE if width > 0 else ""


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text that takes just so many columns; `right`: at their end."""
    shown = clipped(text, width)
    space = " " * (width - cells(shown))
    return space + shown if right else shown + space


def wrapped(parts: Sequence[Piece], width: int, gap: str = " · ") -> list[Line]:
    """Parts next to each other on as few lines as hold them."""
    lines: list[list[Piece]] = []
    used = 0
    for part in parts:
        size = cells(part.text)
        if lines and used + len(gap) + size <= width:
            lines[-1] += [Piece(gap, "dim"), part]
            used += len(gap) + size
        else:
            lines.append([Piece(clipped(part.text, width), part.style)])
            used = size
    return [tuple(line) for line in lines]


def bar(share: float, width: int) -> str:
    """A bar that is full to a share, 0 to 1."""
    full = int(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, for a narrow column."""
    length, unit = next(((length, unit) for length, unit in UNITS if seconds >= 2 * length), (1.0, "s"))
    return f"{seconds / length:.0f} {unit}"


def short_number(number: float) -> str:
    """A number of three digits, none of them below a thousandth, with its thousands as a letter."""
    scale, letter = next(((scale, letter) for scale, letter in THOUSANDS if number >= scale), (1.0, ""))
    return f"{round(number / scale, 3):.3g}{letter}"
