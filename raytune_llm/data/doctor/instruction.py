"""What most prompts of a split have in common: the instruction before, and after, what differs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from raytune_llm.data.parts import prompt_of
from raytune_llm.data.question import plain
from raytune_llm.data.records import Record, Text

MOST_PROMPTS = 0.8
"""Instructions are named when this share of the prompts have one of them."""
SEVERAL = 0.05
"""One of several instructions is what this share of the prompts have."""
FEWEST_WORDS = 3
SAMPLED_PROMPTS = 500

Words = tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """Words that prompts begin with, and those that they end with, commonest first; one of each for most prompts."""

    starts: tuple[Words, ...] = ()
    ends: tuple[Words, ...] = ()

    def start_of(self, text: str) -> str:
        """The one that a text begins with; '' if none."""
        words = text.split()
        return " ".join(next((start for start in self.starts if tuple(words[: len(start)]) == start), ()))

    def end_of(self, text: str) -> str:
        """The one that a text ends with; '' if none."""
        words = text.split()
        return " ".join(next((end for end in self.ends if tuple(words[-len(end) :]) == end), ()))

    def without(self, text: str) -> str:
        """A text without what it begins and ends with; its whitespace is lost then."""
        if not self.starts and not self.ends:
            return text
        words = text.split()
        start = next((start for start in self.starts if tuple(words[: len(start)]) == start), ())
        words = words[len(start) :]
        end = next((end for end in self.ends if tuple(words[-len(end) :]) == end), ())
        return " ".join(words[: len(words) - len(end)])


def find_instruction(records: Sequence[Record]) -> Instruction:
    """That of a split's prompts; of conversations, what is around their turns."""
    stride = -(-len(records) // SAMPLED_PROMPTS) or 1
    prompts = [changing(prompt_of(records[i])).split() for i in range(0, len(records), stride)]
    if len(prompts) < 2:
        return Instruction()
    starts = _common(prompts)
    rest = [words[len(next((s for s in starts if tuple(words[: len(s)]) == s), ())) :] for words in prompts]
    return Instruction(starts, tuple(end[::-1] for end in _common([words[::-1] for words in rest])))


def changing(prompt: Text) -> str:
    """A prompt without the system turn, which many conversations share."""
    return plain(prompt if isinstance(prompt, str) else tuple(turn for turn in prompt if turn.role != "system"))


def _common(prompts: Sequence[Sequence[str]]) -> tuple[Words, ...]:
    """The beginnings that most of the prompts have one of; () where there are none."""
    groups: dict[Words, list[Sequence[str]]] = defaultdict(list)
    for words in prompts:
        if len(words) >= FEWEST_WORDS:
            groups[tuple(words[:FEWEST_WORDS])].append(words)
    large = sorted((g for g in groups.values() if len(g) > max(1, SEVERAL * len(prompts))), key=len, reverse=True)
    if sum(map(len, large)) < MOST_PROMPTS * len(prompts):
        return ()
    return tuple(map(_beginning, large))


def _beginning(prompts: Sequence[Sequence[str]]) -> Words:
    """The longest beginning that most have."""
    found: list[str] = []
    left = [words for words in prompts if words]
    while left:
        word, _ = Counter(words[len(found)] for words in left).most_common(1)[0]
        left = [words for words in left if words[len(found)] == word]
        if len(left) < MOST_PROMPTS * len(prompts):
            break
        found.append(word)
        left = [words for words in left if len(words) > len(found)]
    return tuple(found)
