"""An answer next to the one that was expected, word by word: what is the same, what is extra, what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

WORD = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 1500
"""Characters compared and shown."""
LIKE = 0.3
"""Share of words in common, below which an answer is another one altogether."""


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    kind: str
    """same, extra (in the answer alone) or missing (in the reference alone)."""
    text: str


def pieces(reference: str, answer: str) -> list[Piece]:
    """The answer in parts, with what it lacks of the reference in between."""
    if not reference.strip():
        return [Piece("same", shortened(answer))]
    before, after = WORD.findall(shortened(reference)), WORD.findall(shortened(answer))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < LIKE:
        return [Piece("extra", shortened(answer))] if answer.strip() else []
    found = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found.append(Piece("same", "".join(after[c:d])))
            continue
        found += [Piece("missing", "".join(before[a:b]))] if b > a else []
        found += [Piece("extra", "".join(after[c:d]))] if d > c else []
    return found


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
