"""The scripts that texts are written in, as a cheap sign of their languages."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from raytune_llm.data.doctor.view import Check, Seen, View
from raytune_llm.data.findings import Finding, Severity

SAMPLED_RECORDS = 2000
SAMPLED_CHARACTERS = 500
"""Of each record, from its end."""
FOREIGN = 0.5
"""A split whose main script has less than this share in train is another language."""
NAMES = {"CJK": "Han", "LATIN": "Latin"}


class Scripts(Check):
    """Counts letters by script in a sample."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._stride = -(-view.total // SAMPLED_RECORDS) or 1
        self._counts = Counter[str]()

    def see(self, seen: Seen) -> None:
        if seen.index % self._stride == 0:
            part = seen.text[-SAMPLED_CHARACTERS:]
            if part.isascii():
                self._counts["Latin"] += sum(map(str.isalpha, part))
            else:
                self._counts.update(script(letter) for letter in part if letter.isalpha())

    def merge(self, later: Scripts) -> None:
        self._counts.update(later._counts)

    def shares(self) -> dict[str, float]:
        """Share of each script among the letters, commonest first; those below 1 % are left out."""
        total = self._counts.total() or 1
        return {name: count / total for name, count in self._counts.most_common() if count / total >= 0.01}


@lru_cache(maxsize=1 << 16)
def script(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name."""
    first = unicodedata.name(letter, "OTHER").split()[0].split("-")[0]
    return NAMES.get(first, first.capitalize())


def foreign(scripts: Mapping[str, Mapping[str, float]]) -> Iterable[Finding]:
    """Splits written in a script that train hardly has."""
    train = scripts.get("train")
    for name, shares in scripts.items():
        main = next(iter(shares), None)
        if train and main is not None and shares[main] >= FOREIGN and train.get(main, 0.0) < FOREIGN * shares[main]:
            yield Finding(
                "script",
                Severity.warning,
                name,
                f"{name} is written in {main} letters ({shares[main]:.0%}), train is not ({train.get(main, 0):.0%}): "
                "is it the same language?",
            )
