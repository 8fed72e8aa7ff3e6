"""Answers that are classes: their table, their spellings, their balance."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from raytune_llm.data.doctor.texts import CONTROL, INVISIBLE
from raytune_llm.data.doctor.view import EXCERPT, Check, Hits, Seen, View, quoted
from raytune_llm.data.findings import Finding, Severity, many
from raytune_llm.data.records import Chat, Rationale, Record, Supervised

MOST_LABELS = 20
MOST_ANSWERS = 1000
"""More different answers than this are no classes, and are counted no further."""
COVERED = 0.9
"""Answers are classes when this share of the records has one of at most 20 that occur again."""
SKEWED = 0.6
"""A label is rare when it has less than this share of an equal part."""
FEW = 3
"""A label with fewer records than this, and under 2 % of them, is too rare to be learned."""
FEWEST_RECORDS = 10
"""Of fewer records nothing is concluded about their answers."""
NUM_NAMED = 5
OF_ONE_SPELLING = "of an answer the model's spelling alone is right"
"""Why spellings matter where a model is measured: answers are compared as they are."""


class Labels(Check):
    """Counts the answers of a split whose records have one each."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._counts: Counter[str] | None = Counter()
        self._first: dict[str, int] = {}
        self._joined: dict[str, Counter[str]] | None = None

    def see(self, seen: Seen) -> None:
        if self._counts is None:
            return
        if not has_one_answer(seen.record):
            self._counts = None
        elif seen.answer is not None:
            self._counts[seen.answer] += 1
            self._first.setdefault(seen.answer, seen.index)
            self._end_where_many()

    def merge(self, later: Labels) -> None:
        if self._counts is None or later._counts is None:
            self._counts = None
            return
        self._counts.update(later._counts)
        self._first = later._first | self._first
        self._end_where_many()

    def _end_where_many(self) -> None:
        if self._counts is not None and len(self._counts) > MOST_ANSWERS:
            self._counts, self._first = None, {}

    def table(self) -> dict[str, int] | None:
        """Records of each label, under its commonest spelling, commonest first; None where answers are no classes."""
        joined = self.spellings()
        if joined is None:
            return None
        counts = {spellings.most_common(1)[0][0]: spellings.total() for spellings in joined.values()}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def spellings(self) -> dict[str, Counter[str]] | None:
        """Counts of each spelling of each label, by the label's key; None where answers are no classes."""
        if self._joined is None and self._counts:
            joined: dict[str, Counter[str]] = defaultdict(Counter)
            for answer, count in self._counts.items():
                joined[label_key(answer)][answer] += count
            total = self._counts.total()
            again = [spellings.total() for spellings in joined.values() if spellings.total() > 1]
            is_table = 1 <= len(again) <= MOST_LABELS and sum(again) >= COVERED * total and len(joined) < total / 2
            self._joined = dict(joined) if is_table else {}
        return self._joined or None

    def findings(self) -> Iterator[Finding]:
        if (table := self.table()) is not None:
            yield from self._of_balance(table)

    def misspelt(self, kept: Mapping[str, str]) -> Iterator[Finding]:
        """Answers whose label, by its key, has another spelling that is kept."""
        view, hits, named = self._view, Hits(), []
        for key, spellings in (self.spellings() or {}).items():
            others = [answer for answer, _ in spellings.most_common() if answer != kept[key]]
            if others:
                named.append(" = ".join(distinct(quoted(answer)) for answer in (kept[key], *others)[:NUM_NAMED]))
                for answer in others:
                    hits.add(self._first[answer], distinct(answer[: 2 * EXCERPT]), at=0)
                    hits.count += spellings[answer] - 1
        if named:
            more = " …" if len(named) > NUM_NAMED else ""
            why = "the model would have to guess which one counts" if view.name == "train" else OF_ONE_SPELLING
            yield Finding(
                "label_spellings",
                Severity.warning,
                view.name,
                f"{view.name}: one label in several spellings: {'; '.join(named[:NUM_NAMED])}{more}: {why}; write the "
                "first of each",
                hits.count,
                hits.places(view),
            )

    def _of_balance(self, table: Mapping[str, int]) -> Iterator[Finding]:
        name, total = self._view.name, sum(table.values())
        rare = [label for label, count in table.items() if count < FEW and count < 0.02 * total]
        if rare:
            shown = ", ".join(f"{quoted(label)} ({table[label]})" for label in rare[:NUM_NAMED])
            places = tuple(self._view.place(self._first[label], label) for label in rare[:3] if label in self._first)
            yield Finding(
                "rare_labels",
                Severity.warning,
                name,
                f"{name}: {many(len(rare), 'label')} too rare to be learned or measured: {shown}"
                f"{' …' if len(rare) > NUM_NAMED else ''}: correct what is a slip, add records, or leave them out",
                sum(table[label] for label in rare),
                places,
            )
        common = {label: count for label, count in table.items() if label not in rare}
        last, count = list(common.items())[-1]
        if len(common) > 1 and count / total < SKEWED / len(common):
            yield Finding(
                "label_skew",
                Severity.warning,
                name,
                f"{name} labels are imbalanced ({quoted(last)} {count / total:.1%}): accuracy is misleading; "
                f"report the F1 of {quoted(last)}",
                count,
            )
        if len(table) == 1 and total >= FEWEST_RECORDS:
            yield constant(name, last, total)


def label_spellings(labels: Mapping[str, Labels]) -> Iterator[Finding]:
    """Labels in several spellings, within a split or between them: the first split's commonest is kept in all."""
    kept: dict[str, str] = {}
    for one in labels.values():
        for key, spellings in (one.spellings() or {}).items():
            kept.setdefault(key, spellings.most_common(1)[0][0])
    for one in labels.values():
        yield from one.misspelt(kept)


def constant(name: str, answer: str, total: int) -> Finding:
    """Every record of a split has the same answer."""
    what = (
        "there is nothing to tell apart, a model learns to say it whatever it is asked"
        if name == "train"
        else "a model that always says it is never wrong; scores mean nothing"
    )
    text = f"{name}: all {total:,} answers are {quoted(answer)}: {what}"
    return Finding("constant_answer", Severity.warning, name, text, total)


def unknown_labels(tables: Mapping[str, Mapping[str, int] | None]) -> Iterable[Finding]:
    """Labels of eval and test that train never has."""
    train = tables.get("train")
    if not train:
        return
    known = set(map(label_key, train))
    for name, table in tables.items():
        unknown = sorted(label for label in table or () if label_key(label) not in known)
        if unknown:
            shown = ", ".join(map(quoted, unknown[:NUM_NAMED])) + (" …" if len(unknown) > NUM_NAMED else "")
            yield Finding(
                "unknown_labels",
                Severity.warning,
                name,
                f"{name} has labels that never occur in train: {shown}",
                sum((table or {})[label] for label in unknown),
            )


def has_one_answer(record: Record) -> bool:
    """Whether a record asks for one text: a chat does where no other turn is learned, nor a call of a tool."""
    if isinstance(record, Chat):
        learned = [turn for turn in record.messages if turn.role == "assistant" and turn.learn]
        return len(learned) == 1 and learned[0].tool_calls is None
    return isinstance(record, Supervised | Rationale)


def distinct(text: str) -> str:
    """A short text that isn't in Unicode's form NFC with escape sequences for what is not: its twin in NFC looks the
    same."""
    if unicodedata.is_normalized("NFC", text):
        return text
    lengths = [len(unicodedata.normalize("NFC", text[:end])) for end in range(len(text) + 1)]
    return "".join(
        c.encode("ascii", "backslashreplace").decode()
        if unicodedata.combining(c) or not unicodedata.is_normalized("NFC", c) or lengths[i + 1] <= lengths[i]
        else c
        for i, c in enumerate(text)
    )


def label_key(answer: str) -> str:
    """What spellings of one label have in common: case, whitespace, a final stop and what doesn't show don't count."""
    text = CONTROL.sub("", INVISIBLE.sub("", unicodedata.normalize("NFKC", answer)))
    text = " ".join(text.split()).casefold()
    return text.rstrip(".!,;:") or text
