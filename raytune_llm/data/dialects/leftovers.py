"""What the readers of records leave: keys that nothing reads, thoughts, and keys to ignore that no record has."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from raytune_llm.data.dialects.values import INDEX_KEYS, THOUGHTS_LEFT, keys_of, printable
from raytune_llm.data.findings import Finding, Place, Severity, many

MOST_SHOWN = 20
"""Keys that nothing reads which are shown, those of most records."""
LOOKED_AT = 1000
"""First records whose keys may be meant by one to ignore that none has."""


class Leftovers:
    """Counts what is left of the records of a job. `ignore`: keys that data.ignore names; `columns`: the file's keys by
    the names that data.columns gives them."""

    def __init__(self, ignore: Sequence[str] = (), columns: Mapping[str, str] | None = None) -> None:
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._missing = {key: "data.ignore" for key in ignore}
        self._missing |= {key: f"data.columns.{name}" for name, key in (columns or {}).items()}
        self._known, self._num_seen = dict[str, None](), 0

    def see(self, raw: object) -> None:
        """Look for the keys to ignore, and for those with other names, in an object."""
        if not self._missing:
            return
        keys = dict.fromkeys(keys_of(raw))
        self._missing = {key: option for key, option in self._missing.items() if key not in keys}
        if self._num_seen < LOOKED_AT:
            self._known |= keys
        self._num_seen += 1

    def add(self, unused: Sequence[str], where: str) -> None:
        """What nothing read of a record that was read there."""
        for key in unused:
            if not self._count[key]:
                self._first[key] = where
            self._count[key] += 1

    def findings(self) -> Iterator[Finding]:
        """All of it, as notes."""
        for key, count in self._count.most_common(MOST_SHOWN):
            kind = "thoughts" if key == THOUGHTS_LEFT else "unused_keys"
            place = Place(self._first[key], "" if key in (THOUGHTS_LEFT, *INDEX_KEYS) else key)
            yield Finding(kind, Severity.note, "", _sentence(key, many(count, "record")), count, (place,))
        if (hidden := len(self._count) - MOST_SHOWN) > 0:
            yield Finding(
                "unused_keys", Severity.note, "", f"nothing reads {many(hidden, 'more key')} of fewer records"
            )
        for key, option in self._missing.items() if self._num_seen else ():
            if option == "data.ignore":
                yield Finding("unknown_ignore", Severity.note, "", self._absent(key, option))

    def absent_columns(self) -> Iterator[str]:
        """What is wrong with names that data.columns gives to keys which no record has."""
        for key, option in self._missing.items() if self._num_seen else ():
            if option != "data.ignore":
                yield self._absent(key, option)

    def _absent(self, key: str, option: str) -> str:
        return f"{option}: no record has a key {printable(key)}{self._meant(key)}"

    def _meant(self, key: str) -> str:
        names = {name.casefold(): name for name in self._known}
        close = difflib.get_close_matches(key.casefold(), names, n=1)
        return f"; did you mean {printable(names[close[0]])}?" if close else ""


def _sentence(key: str, records: str) -> str:
    if key == THOUGHTS_LEFT:
        return f"left out: what the assistant thought (reasoning_content, parts with thought: true), in {records}"
    if key in INDEX_KEYS:
        return f"left out: the numbers of the rows, which pandas wrote as {key!r}, of {records}"
    return f"nothing reads the key {key} of {records}"
