"""What most prompts of a split have in common: the instruction before, and after, what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.data.parts import prompt_of
from raytune_llm.data.question import plain
from raytune_llm.data.records import Record, Text

MOST_PROMPTS = 0.8
"""An instruction is what this share of the prompts have."""
FEWEST_WORDS = 3
SAMPLED_PROMPTS = 500


@dataclass(frozen=True)
class Instruction:
    """Words that most prompts begin with, and those that most end with; none where they are fewer than 3."""

    start: tuple[str, ...] = ()
    end: tuple[str, ...] = ()

    def without(self, text: str) -> str:
        """A text without them, where it has them; its whitespace is lost then."""
        if not self.start and not self.end:
            return text
        words = text.split()
        if self.start and tuple(words[: len(self.start)]) == self.start:
            words = words[len(self.start) :]
        if self.end and tuple(words[-len(self.end) :]) == self.end:
            words = words[: -len(self.end)]
        return " ".join(words)


def find_instruction(records: Sequence[Record]) -> Instruction:
    """That of a split's prompts; of conversations, what is around their turns."""
    stride = -(-len(records) // SAMPLED_PROMPTS) or 1
    words = [changing(prompt_of(records[i])).split() for i in range(0, len(records), stride)]
    if len(words) < 2:
        return Instruction()
    start = _common(words)
    rest = [one[len(start) :] for one in words]
    return Instruction(tuple(start), tuple(reversed(_common([one[::-1] for one in rest]))))


def changing(prompt: Text) -> str:
    """A prompt without the system turn, which many conversations share."""
    return plain(prompt if isinstance(prompt, str) else tuple(turn for turn in prompt if turn.role != "system"))


def _common(words: Sequence[Sequence[str]]) -> list[str]:
    """The longest beginning that most have, in words; [] if it is short."""
    found: list[str] = []
    left = [one for one in words if one]
    while left:
        word, _ = Counter(one[len(found)] for one in left).most_common(1)[0]
        left = [one for one in left if one[len(found)] == word]
        if len(left) < MOST_PROMPTS * len(words):
            break
        found.append(word)
        left = [one for one in left if len(one) > len(found)]
    return found if len(found) >= FEWEST_WORDS else []
