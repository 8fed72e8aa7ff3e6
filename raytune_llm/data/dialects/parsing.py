"""From JSON to records: which dialect an object is in, which of its keys nothing reads, and what is wrong with it.

Nothing is ignored silently: a key that nothing reads is returned with the record, one with a meaning that would be lost
is refused, and so is a record of two dialects that hold different things.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raytune_llm.data.dialects.dialect import DIALECTS, Dialect
from raytune_llm.data.dialects.values import EXPECTED, INDEX_KEYS, MEANINGS, Row, check_unread, left_out, printable
from raytune_llm.data.records import (
    Chat,
    Message,
    PlainText,
    Preference,
    Prompt,
    Rationale,
    Record,
    RecordError,
    show,
    show_keys,
)
from raytune_llm.errors import InputError

PLAIN_KEY = re.compile(r"[A-Za-z][\w-]{,39}", re.ASCII)
"""A key that needs no quotes on a command line."""
BY_KEYS = tuple(dialect for dialect in DIALECTS if not dialect.alone)
MOST_PLANS = 1024
"""Sets of keys for which the way to read them is kept."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How objects with certain keys are read."""

    dialect: Dialect
    unused: tuple[str, ...]
    """Printable names of keys that the dialect doesn't read."""
    meaningful: tuple[str, ...]
    """Those of them that may be present only with a value that means nothing."""
    rivals: tuple[tuple[Dialect, ...], ...]
    """Other dialects that the object is in, those of the same keys together: one of each must hold the same."""


class Reader:
    """Reads objects as records of some kinds.

    Args:
        kinds: what the method takes, the preferred kind first.
        columns: the file's keys by the names that the dialects give them: {"prompt": "question"}.
        ignore: the file's keys that are left out wherever they are, also in turns.

    Raises:
        InputError: columns has a name that no dialect knows.
    """

    def __init__(
        self, kinds: Sequence[type], *, columns: Mapping[str, str] | None = None, ignore: Sequence[str] = ()
    ) -> None:
        self._kinds, self._columns, self._ignore = tuple(kinds), dict(columns or {}), frozenset(ignore)
        self._wanted = [dialect for dialect in DIALECTS if set(dialect.kinds) & set(kinds)]
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._names = frozenset(self._columns.values())
        known = dict.fromkeys(key for dialect in DIALECTS for key in (*dialect.needs, *dialect.also))
        for ours, theirs in self._columns.items():
            if theirs in self._ignore:
                raise InputError(f"data.columns.{printable(ours)}={printable(theirs)}: data.ignore leaves that key out")
            if ours not in known:
                near = difflib.get_close_matches(ours, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise InputError(f"data.columns.{printable(ours)}: no dialect has such a key; {hint}")

    def read(self, raw: object) -> tuple[Record, tuple[str, ...]]:
        """The record in `raw`, of the first of the kinds that it has all the keys for, and the keys that nothing read
        (printable; those of turns as "messages[].id").

        Raises:
            RecordError: with the key at fault, what was found and what was expected. One that has more keys of another
                of the kinds lacks the rest of them: a prompt with one candidate is no Prompt record.
        """
        if not isinstance(raw, dict):
            raise RecordError("record", show(raw), "a JSON object")
        if not self._columns:
            return self._read(raw, self._columns)
        if self._names.isdisjoint(raw):  # of another source, perhaps, in a dialect of its own
            with contextlib.suppress(RecordError):
                return self._read(raw, {})
        try:
            return self._read(raw, self._columns)
        except RecordError as error:
            name = error.key.partition(".")[0].partition("[")[0]
            if name not in self._columns:
                raise
            key = f"{printable(self._columns[name])}{error.key[len(name) :]} (read as {name})"
            raise RecordError(key, error.found, error.expected) from None

    def _values(self, raw: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
        """What the object holds by the dialects' names, without what is null or left out."""
        if self._ignore:
            raw = {key: value for key, value in raw.items() if key not in self._ignore}
        if columns:
            for ours, theirs in columns.items():
                if theirs not in raw:
                    expected = f"a key of that name: data.columns.{ours} reads it as {ours}"
                    raise RecordError(printable(theirs), f"no such key among {show_keys(raw)}", expected)
            others = {
                f"{key} (of the file)" if key in columns else key: raw[key] for key in raw if key not in self._names
            }
            raw = {**{ours: raw[theirs] for ours, theirs in columns.items()}, **others}
        return {key: value for key, value in raw.items() if value is not None} if None in raw.values() else raw

    def _read(self, raw: dict[str, Any], columns: Mapping[str, str]) -> tuple[Record, tuple[str, ...]]:
        values = self._values(raw, columns)
        keys = tuple(values)
        plan = self._plans.get(keys) or self._plan(raw, values, keys)
        for key in plan.meaningful:
            check_unread(key, values[key], ())
        row = Row(values, self._ignore)
        record = plan.dialect.read(row)
        if type(record) not in self._kinds:
            raise RecordError("record", f"a {type(record).__name__} record", _wanted(self._kinds))
        for rivals in plan.rivals:
            self._check_rivals(plan.dialect, rivals, values, record)
        if row.unused:
            return record, (*plan.unused, *dict.fromkeys(row.unused))
        return record, plan.unused

    def _plan(self, raw: dict[str, Any], values: dict[str, Any], keys: tuple[str, ...]) -> _Plan:
        """How to read objects with these keys. Raises RecordError where no dialect fits, or a key would be lost."""
        present = set(values)
        fitting = [dialect for dialect in self._wanted if self._fits(dialect, present)]
        if not fitting:
            raise _misfit(raw, values, self._kinds)
        largest = max(fitting, key=lambda dialect: (len(present.intersection(dialect.needs)), -len(dialect.needs)))
        if not present.issuperset(largest.needs):
            raise _misfit(raw, values, self._kinds)
        dialect = next(d for kind in self._kinds for d in fitting if kind in d.kinds and present.issuperset(d.needs))
        read = {*dialect.needs, *dialect.also}
        unused = [key for key in values if key not in read]
        for key in unused:
            check_unread(key, None, read - present)
        rivals: dict[tuple[str, ...], list[Dialect]] = {}
        for other in DIALECTS:
            if self._is_rival(dialect, other, present):
                rivals.setdefault(other.needs, []).append(other)
        plan = _Plan(
            dialect,
            tuple(map(printable, unused)),
            tuple(key for key in unused if key in MEANINGS),
            tuple(map(tuple, rivals.values())),
        )
        if len(self._plans) >= MOST_PLANS:
            self._plans.clear()
        self._plans[keys] = plan
        return plan

    def _fits(self, dialect: Dialect, present: set[str]) -> bool:
        """Whether an object may be in a dialect by the keys that it should not have."""
        is_named = not self._columns.keys().isdisjoint(dialect.needs)
        return present.isdisjoint(dialect.unless) and (
            not dialect.alone or is_named or present <= {*dialect.needs, *INDEX_KEYS}
        )

    def _is_rival(self, dialect: Dialect, other: Dialect, present: set[str]) -> bool:
        """Whether an object in `dialect` is in `other` too, with a prompt or answer of its own."""
        if not present.issuperset(other.needs) or not self._fits(other, present):
            return False
        if set(other.needs) <= set(dialect.needs) or set(other.needs) >= set(dialect.needs):
            return False
        is_wanted = not set(other.kinds).isdisjoint(self._kinds)
        has_answer = not set(other.kinds) <= {Prompt, Rationale}
        return is_wanted or (has_answer and other.needs[0] != dialect.needs[0])

    def _check_rivals(
        self, dialect: Dialect, rivals: tuple[Dialect, ...], values: dict[str, Any], record: Record
    ) -> None:
        """Raises RecordError where the rivals' keys hold something else than the record."""
        for rival in rivals:
            try:
                if _agree(record, rival.read(Row(values, self._ignore))):
                    return
            except RecordError:
                continue
        needs = rivals[0].needs
        found = f"{show_keys(dialect.needs)} and also {show_keys(needs)}, which hold different things"
        others = ",".join(key for key in needs if key not in dialect.needs)
        raise RecordError("keys", found, f"one of the two; {left_out(others)}")


def parse(
    raw: object, kinds: Sequence[type], *, columns: Mapping[str, str] | None = None, ignore: Sequence[str] = ()
) -> Record:
    """The record in `raw`, as `Reader.read` has it, without the keys that nothing read."""
    return _reader(tuple(kinds), tuple((columns or {}).items()), tuple(ignore)).read(raw)[0]


@lru_cache(maxsize=64)
def _reader(kinds: tuple[type, ...], columns: tuple[tuple[str, str], ...], ignore: tuple[str, ...]) -> Reader:
    return Reader(kinds, columns=dict(columns), ignore=ignore)


def _agree(one: Record, other: Record) -> bool:
    """Whether two records hold the same turns; a prompt agrees with what begins with it."""
    shorter, longer = sorted((_words(one), _words(other)), key=len)
    is_prompt = isinstance(one, Prompt) or isinstance(other, Prompt)
    return shorter == longer[: len(shorter)] and (is_prompt or len(shorter) == len(longer))


def _words(record: Record) -> list[tuple[str, str]]:
    """Role and text of a record's turns, prompt and answer."""
    match record:
        case Chat():
            turns: Sequence[Message] = record.messages
        case Preference() | Prompt():
            answer = record.chosen if isinstance(record, Preference) else ()
            turns = (*_turns(record.prompt, "user"), *_turns(answer, "assistant"))
        case PlainText():
            turns = (Message("user", record.text),)
        case _:
            answer = (record.label or "") if isinstance(record, Rationale) else record.completion
            turns = (Message("user", record.prompt), Message("assistant", answer))
    return [(turn.role, turn.content.strip()) for turn in turns]


def _turns(text: str | tuple[Message, ...], role: str) -> tuple[Message, ...]:
    return (Message(role, text),) if isinstance(text, str) else text


def _misfit(raw: dict[str, Any], row: dict[str, Any], kinds: Sequence[type]) -> RecordError:
    """Why no wanted dialect matches: a key is missing, the record is of another kind, or no key is known."""

    def num_present(dialect: Dialect) -> int:
        return len(row.keys() & set(dialect.needs))

    whole = [dialect for dialect in BY_KEYS if row.keys() >= set(dialect.needs)]
    other = max(whole, key=num_present, default=None)
    wanted = [dialect for dialect in BY_KEYS if set(dialect.kinds) & set(kinds)]
    near = max(wanted, key=lambda dialect: (num_present(dialect), -len(dialect.needs)), default=None)
    if near is not None and num_present(near) and (other is None or num_present(other) <= num_present(near)):
        missing = next(key for key in near.needs if key not in row)
        found = f"no such key among {show_keys(raw)}"
        if missing in raw:
            found = "null" if raw[missing] is None else "a key that data.ignore leaves out"
        kind = next(kind for kind in kinds if kind in near.kinds).__name__
        expected = f"{EXPECTED.get(missing, 'a list of turns')}, for a {kind} record"
        return RecordError(missing, found, expected + _column_hint(missing, row))
    if other is not None:
        return RecordError("record", f"a {other.kinds[0].__name__} record with keys {show_keys(raw)}", _wanted(kinds))
    if isinstance(row.get("text"), str):
        alone = "no other keys, or data.columns.text=text to learn the texts whole; else " if PlainText in kinds else ""
        return RecordError("text", f"plain text with keys {show_keys(raw)}", f"{alone}{_wanted(kinds)}")
    hint = "; or name the file's own keys: data.columns.prompt=question"
    found = show_keys(raw) if row or not raw else f"{show_keys(raw)}, all null or left out"
    return RecordError("keys", found, _wanted(kinds) + (hint if row else ""))


def _column_hint(missing: str, row: dict[str, Any]) -> str:
    """How to read the first unknown key of text as the missing one, where there is such a key."""
    known = {key for dialect in BY_KEYS for key in (*dialect.needs, *dialect.also)} | MEANINGS.keys()
    texts = (key for key, value in row.items() if isinstance(value, str) and key not in known)
    key = next((key for key in texts if PLAIN_KEY.fullmatch(key)), None)
    return "" if key is None else f"; data.columns.{missing}={key} reads {key} as it"


def _wanted(kinds: Sequence[type]) -> str:
    """Every accepted dialect of the kinds, in words."""
    parts = []
    for kind in kinds:
        needs = dict.fromkeys("+".join(d.needs) for d in DIALECTS if kind in d.kinds)
        parts.append(f"a {kind.__name__} record ({' or '.join(needs)})")
    return " or ".join(parts)
