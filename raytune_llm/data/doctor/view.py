"""One split as the checks see it: every record once, with its texts and what the method made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from raytune_llm.data.encoding.encode import EncodedSplit
from raytune_llm.data.examples import Example
from raytune_llm.data.findings import Finding, Place
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


@dataclass
class Seen:
    """One record."""

    index: int
    """In its split."""
    record: Record
    prompt: str
    answer: str | None
    """The answer to learn, where there is exactly one; conversations as text."""
    text: str
    """All that the record says, its parts a line break apart."""
    encoded: tuple[Sequence[Example], int] | None
    """Examples, and which of them is the record's."""

    @cached_property
    def example(self) -> Example | None:
        """None without a tokenizer, or where truncation left nothing."""
        return None if self.encoded is None else self.encoded[0][self.encoded[1]]


@dataclass(frozen=True)
class View:
    """A split, or a part of one."""

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
    before: int = 0
    """Records of the split before this part of it."""
    after: int = 0

    def __iter__(self) -> Iterator[Seen]:
        rows = [] if self.encoded is None else self.encoded.rows.tolist()
        for place, record in enumerate(self.records):
            prompt, answer = plain(prompt_of(record)), answer_of(record)
            answer = None if answer is None else plain(answer)
            encoded = None if self.encoded is None or rows[place] < 0 else (self.encoded.examples, rows[place])
            yield Seen(self.before + place, record, prompt, answer, "\n".join(texts_of(record)), encoded)

    def part(self, first: int, end: int) -> View:
        """The records [first, end), to be looked through elsewhere: without tokens and places."""
        encoded = None if self.encoded is None else self.encoded.part(first, end)
        records = self.records[first:end] if encoded is None else encoded.records
        after = len(self.records) - first - len(records)
        return replace(self, records=records, encoded=encoded, where=str, tokens=None, before=first, after=after)

    @property
    def total(self) -> int:
        """Records of the whole split."""
        return self.before + len(self.records) + self.after

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompt and completion are apart; False without a tokenizer."""
        return self.tokens is not None and self.tokens.is_encoder_decoder

    @property
    def stride(self) -> int:
        """Every which record a costly check looks at."""
        return -(-self.total // SAMPLE) or 1

    @property
    def of_sample(self) -> str:
        """How a count of sampled records is to be read."""
        return "" if self.stride == 1 else f" (in a sample of {len(range(0, self.total, self.stride)):,})"

    def place(self, index: int, text: str) -> Place:
        """Where a record was read, and a short text of it."""
        return Place(printable(self.where(index)), excerpt(text))


class Check(ABC):
    """One thing to look for in a split."""

    def __init__(self, view: View) -> None:
        self._view = view

    @abstractmethod
    def see(self, seen: Seen) -> None:
        """Count one record."""

    @abstractmethod
    def merge(self, later: Self) -> None:
        """Count what another one counted of the records after these, so that both together are as if one had seen
        all: what is counted depends on the record and the whole split, not on the records before it."""

    def findings(self) -> Iterable[Finding]:
        """What was found, after the last record."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        """Counts travel without the records."""
        return {name: value for name, value in vars(self).items() if name != "_view"}


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

    def merge(self, later: Hits) -> None:
        """Count those of later records too."""
        self.count += later.count
        self.first = [*self.first, *later.first][:NUM_SHOWN]

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


def brief(name: str, limit: int = 80) -> str:
    """A name without its middle if it is long; printable."""
    half = limit // 2
    return printable(name if len(name) <= limit else f"{name[: half - 1]}…{name[-half:]}")


def share(count: int, total: int) -> str:
    """A count as a share of a total, in percent, never rounded to nothing or to all."""
    percent = 100 * count / max(total, 1)
    if 0 < percent < 1:
        return "< 1 %"
    return "> 99 %" if 99 < percent < 100 else f"{percent:.0f} %"
