"""One split as the checks see it: every record once, with its texts and what the method made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from raytune_llm.data.encoding.encode import EncodedSplit
from raytune_llm.data.examples import Example
from raytune_llm.data.findings import Finding, Place
from raytune_llm.data.findings import many as many
from raytune_llm.data.parts import answer_of, prompt_of, texts_of
from raytune_llm.data.question import plain
from raytune_llm.data.records import Record

if TYPE_CHECKING:
    from raytune_llm.data.tokenizing.tokens import Tokens

NUM_SHOWN = 3
EXCERPT = 60
"""Longest excerpt of a text, characters."""
SAMPLE = 20_000
"""Records that a costly check looks at, evenly spread over the split."""


@dataclass(slots=True)
class Seen:
    """One record."""

    index: int
    record: Record
    prompt: str
    answer: str | None
    """The answer to learn, where there is exactly one; conversations as text."""
    text: str
    """All that the record says, its parts a line break apart."""
    example: Example | None
    """None without a tokenizer, or where truncation left nothing."""


@dataclass(frozen=True)
class View:
    """A split."""

    name: str
    records: Sequence[Record]
    encoded: EncodedSplit | None
    where: Callable[[int], str]
    """File and line of a record."""
    tokens: Tokens | None = None
    context_tokens: int | None = None
    """What the base can take; None = not known."""
    longest_tokens: int = 0
    """Of the longest sequence of all splits, before truncation."""

    def __iter__(self) -> Iterator[Seen]:
        for index, (record, example) in enumerate(zip(self.records, self._examples(), strict=True)):
            prompt, answer = plain(prompt_of(record)), answer_of(record)
            answer = None if answer is None else plain(answer)
            yield Seen(index, record, prompt, answer, "\n".join(texts_of(record)), example)

    def _examples(self) -> Iterator[Example | None]:
        """What the method made of each record, one at a time."""
        rows = (
            iter(()) if self.encoded is None else zip(self.encoded.places.tolist(), self.encoded.examples, strict=True)
        )
        place, example = next(rows, (-1, None))
        for index in range(len(self.records)):
            if index == place:
                yield example
                place, example = next(rows, (-1, None))
            else:
                yield None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompt and completion are apart; False without a tokenizer."""
        return self.tokens is not None and self.tokens.is_encoder_decoder

    @property
    def stride(self) -> int:
        """Every which record a costly check looks at."""
        return -(-len(self.records) // SAMPLE) or 1

    @property
    def of_sample(self) -> str:
        """How a count of sampled records is to be read."""
        return "" if self.stride == 1 else f" (in a sample of {len(range(0, len(self.records), self.stride)):,})"

    def place(self, index: int, text: str) -> Place:
        """Where a record was read, and a short text of it."""
        return Place(printable(self.where(index)), excerpt(text))


class Check(Protocol):
    """One thing to look for in a split."""

    def see(self, seen: Seen) -> None:
        """Count one record."""
        ...

    def findings(self) -> Iterable[Finding]:
        """What was found, after the last record."""
        ...


@dataclass
class Hits:
    """How many records have something, and the first few of them."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    """Index and excerpt."""

    def add(self, index: int, text: str, *, at: int | None = None) -> None:
        """Count a record; an excerpt of the text is kept, from around character `at` or its end."""
        self.count += 1
        if len(self.first) < NUM_SHOWN:
            self.first.append((index, excerpt(text, at=at)))

    def places(self, view: View) -> tuple[Place, ...]:
        return tuple(Place(printable(view.where(index)), text) for index, text in self.first)


def printable(text: str) -> str:
    """The text with everything that doesn't show written as an escape sequence."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def excerpt(text: str, limit: int = EXCERPT, *, at: int | None = None) -> str:
    """The end of a text, where prompts mostly differ, or what is around character `at`; printable, on one line."""
    if at is not None:
        start = max(0, at - limit // 2)
        text, before, after = text[start : start + limit], start > 0, start + limit < len(text)
        return ("…" if before else "") + printable(text.replace("\n", " ")) + ("…" if after else "")
    words = " ".join(text[-8 * limit :].split())
    return printable(words) if len(words) <= limit else f"…{printable(words[1 - limit :])}"


def quoted(text: str, limit: int = 40) -> str:
    """A short text in quotes, with its outer whitespace; printable."""
    return f"'{printable(text[:limit])}{'…' if len(text) > limit else ''}'"


def share(count: int, total: int) -> str:
    """A count as a share of a total, in percent, never rounded to nothing or to all."""
    percent = 100 * count / max(total, 1)
    if 0 < percent < 1:
        return "< 1 %"
    return "> 99 %" if 99 < percent < 100 else f"{percent:.0f} %"
