"""Records as numbers to compare: 24 bytes a record, so that a million of them are sorted at once."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from raytune_llm.data.doctor.view import Check, Seen, View
from raytune_llm.data.parts import is_instruction, prompt_key, text_key
from raytune_llm.data.question import plain
from raytune_llm.data.records import Preference, Record
from raytune_llm.data.tables.record_table import Serialiser

if TYPE_CHECKING:
    from numpy.typing import NDArray

NONE = 0
"""The key of an answer that isn't there."""


class Keys(Check):
    """Keys of a split: equal ones mean equal texts (two of a million different ones agree once in 10⁷ data sets). They
    are the same in every process."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._whole, self._prompt, self._answer, self._other = (array("Q") for _ in range(4))

    def see(self, seen: Seen) -> None:
        record = seen.record
        self._whole.append(whole_key(record))
        self._prompt.append(key(prompt_key(seen.prompt)))
        self._answer.append(NONE if seen.answer is None else key(text_key(seen.answer)))
        self._other.append(key(text_key(plain(record.rejected))) if isinstance(record, Preference) else NONE)

    def merge(self, later: Keys) -> None:
        self._whole += later._whole
        self._prompt += later._prompt
        self._answer += later._answer
        self._other += later._other

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


def key(text: str) -> int:
    """64 bits of a text."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


SERIALISED = Serialiser()


def whole_key(record: Record) -> int:
    """64 bits of what makes records equal."""
    if isinstance(record, Preference) and record.place is not None:
        record = replace(record, place=None)
    return xxhash.xxh3_64_intdigest(SERIALISED(record))


def mixed(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One key of two, their order being of account."""
    return first * np.int64(-7046029254386353131) ^ second
