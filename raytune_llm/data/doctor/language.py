"""The scripts and the languages that texts are written in.

Languages are recognised by py3langid (BSD licence, a model of 4.6 MB in the package), which is loaded for the first
text that is long enough. Leaves out texts of a few words, and those that it isn't sure of: code, numbers, mixtures.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache

from raytune_llm.compat import language_classifier
from raytune_llm.data.doctor.instruction import Instruction
from raytune_llm.data.doctor.view import Check, Seen, View
from raytune_llm.data.findings import Finding, Severity

SAMPLED_RECORDS = 2000
SAMPLED_CHARACTERS = 500
"""Of each record, from its end."""
FOREIGN = 0.5
"""A split whose main script has less than this share in train is another language."""
FEWEST_LETTERS = 12
"""Of shorter texts no language is recognised."""
SURE = 0.9
"""Probability from which on a language counts."""
FEWEST_SURE, SURE_SHARE = 10, 0.1
"""Of fewer texts, or a smaller share of the long enough ones, nothing is concluded."""
NEW_LANGUAGE, KNOWN_LANGUAGE = 0.1, 0.01
"""Share of a split's texts from which on their language should be in train, and from which on it is."""
NO_LANGUAGE = "zxx"
"""What ISO 639 calls texts without one."""
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


class Languages(Check):
    """Keeps prompts, without the instruction that most have, and answers of a sample; finds their languages at the
    end, in one process."""

    def __init__(self, view: View, instruction: Instruction) -> None:
        super().__init__(view)
        self._stride = -(-view.total // SAMPLED_RECORDS) or 1
        self._instruction = instruction
        self._texts: list[str] = []

    def see(self, seen: Seen) -> None:
        if seen.index % self._stride == 0:
            for text in (self._instruction.without(seen.prompt), seen.answer or ""):
                part = text[-SAMPLED_CHARACTERS:]
                if sum(map(str.isalpha, part)) >= FEWEST_LETTERS:
                    self._texts.append(part)

    def merge(self, later: Languages) -> None:
        self._texts += later._texts

    def shares(self) -> dict[str, float]:
        """Share of each language, by its ISO 639 code, among the texts whose language is sure, commonest first; those
        below 1 % are left out. {} where too few are."""
        if len(self._texts) < FEWEST_SURE:
            return {}
        found = Counter(name for name in map(language, self._texts) if name is not None)
        total = found.total()
        if total < max(FEWEST_SURE, SURE_SHARE * len(self._texts)):
            return {}
        return {name: count / total for name, count in found.most_common() if count / total >= KNOWN_LANGUAGE}


def language(text: str) -> str | None:
    """ISO 639 code of a text's language; None where it isn't sure."""
    name, probability = _classifier()(text)
    return name if probability >= SURE and name != NO_LANGUAGE else None


@cache
def _classifier() -> Callable[[str], tuple[str, float]]:
    """Half a second and 100 MB: loaded once, where it is needed."""
    return language_classifier()


def listed(shares: Mapping[str, float]) -> str:
    """Shares as text: 'en 97%, de 3%'."""
    return ", ".join(f"{name} {part:.0%}" for name, part in shares.items())


@lru_cache(maxsize=1 << 16)
def script(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name."""
    first = unicodedata.name(letter, "OTHER").split()[0].split("-")[0]
    return NAMES.get(first, first.capitalize())


def foreign(
    scripts: Mapping[str, Mapping[str, float]], languages: Mapping[str, Mapping[str, float]]
) -> Iterator[Finding]:
    """Splits in a language that train hardly has or, where languages aren't recognised, in such a script."""
    for name in scripts:
        of_languages = list(_of_languages(name, languages))
        yield from of_languages or _of_scripts(name, scripts)


def _of_languages(name: str, languages: Mapping[str, Mapping[str, float]]) -> Iterator[Finding]:
    train = languages.get("train")
    new = {code: part for code, part in languages[name].items() if part >= NEW_LANGUAGE and code not in (train or ())}
    if train and new:
        yield Finding(
            "language",
            Severity.warning,
            name,
            f"{name} has texts in languages that train lacks: {listed(new)}; train: {listed(train)} (ISO 639 codes; "
            "where one can be recognised): add such records to train, or leave them out",
        )


def _of_scripts(name: str, scripts: Mapping[str, Mapping[str, float]]) -> Iterator[Finding]:
    train, shares = scripts.get("train"), scripts[name]
    main = next(iter(shares), None)
    if train and main is not None and shares[main] >= FOREIGN and train.get(main, 0.0) < FOREIGN * shares[main]:
        yield Finding(
            "script",
            Severity.warning,
            name,
            f"{name} is written in {main} letters ({shares[main]:.0%}), train is not ({train.get(main, 0):.0%}): "
            "is it the same language?",
        )
