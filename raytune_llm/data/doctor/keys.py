"""Records as numbers to compare: 24 bytes a record, so that a million of them are sorted at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from raytune_llm.data.doctor.view import Seen
from raytune_llm.data.findings import Finding
from raytune_llm.data.parts import is_instruction, prompt_key, text_key
from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = 0
"""The key of an answer that isn't there."""


class Keys:
    """Keys of a split: equal ones mean equal texts (two of a million different ones agree once in 10⁷ data sets)."""

    def __init__(self) -> None:
        self._whole, self._prompt, self._answer, self._other = (array("q") for _ in range(4))
        self._answers_are_pairs = False

    def see(self, seen: Seen) -> None:
        record = seen.record
        self._whole.append(hash(record))
        self._prompt.append(hash(prompt_key(seen.prompt)))
        self._answer.append(NONE if seen.answer is None else hash(text_key(seen.answer)))
        if isinstance(record, Preference):
            self._answers_are_pairs = True
            self._other.append(hash(text_key(plain(record.rejected))))
        else:
            self._other.append(NONE)

    def findings(self) -> Iterable[Finding]:
        return ()

    @property
    def whole(self) -> NDArray[np.int64]:
        """Of all that a record has."""
        return np.frombuffer(self._whole, dtype=np.int64)

    @property
    def prompt(self) -> NDArray[np.int64]:
        """Of the prompts; whitespace and case don't count."""
        return np.frombuffer(self._prompt, dtype=np.int64)

    @property
    def answer(self) -> NDArray[np.int64]:
        """Of the answers to learn, NONE where there is none."""
        return np.frombuffer(self._answer, dtype=np.int64)

    @property
    def other(self) -> NDArray[np.int64]:
        """Of rejected answers, NONE where there is none."""
        return np.frombuffer(self._other, dtype=np.int64)

    @property
    def prompt_and_answer(self) -> NDArray[np.int64]:
        """Of both together."""
        return mixed(self.prompt, self.answer)

    @property
    def prompts_repeat(self) -> bool:
        """Whether a few prompts are for all records, so that a prompt alone tells nothing."""
        return is_instruction(len(np.unique(self.prompt)), len(self.prompt))


def mixed(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One key of two, their order being of account."""
    return first * np.int64(-7046029254386353131) ^ second
