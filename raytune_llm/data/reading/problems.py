"""What is wrong with lines of data: grouped by kind, so that many equal problems hide no other."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raytune_llm.data.findings import many
from raytune_llm.errors import InputError
from raytune_llm.stores.disk_full import raise_if_no_room

SHOWN_KINDS = 20
SHOWN_LINES = 3
MOST_KINDS = 1000
"""Kinds of problems that are counted apart; further ones count as one."""
OTHERS = "problems of other kinds"
NAME = "rejects.jsonl"
MOST_SKIPPED = 0.5
"""Where more than this share of the lines can't be used, leaving them out is refused."""
LONGEST_REJECT = 100_000
"""Characters of a line left out that are kept in the file of those."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no JSON, or no row of its file's format."""

    column: int | None
    """Where it stops being JSON, characters from 1; None where that is no matter."""
    reason: str
    excerpt: str = ""
    content: str = field(default="", compare=False, repr=False)
    """The whole line, where it is one."""

    def __str__(self) -> str:
        near = f", near {self.excerpt!r}" if self.excerpt else ""
        return (f"column {self.column}: not JSON: " if self.column is not None else "") + self.reason + near


@dataclass
class Group:
    """Problems of one kind."""

    text: str
    """The first one's."""
    path: str
    lines: list[int] = field(default_factory=list)
    """Of the first few."""
    count: int = 0

    def __str__(self) -> str:
        shown = f"{self.path}:{self.lines[0]}: {self.text}" if self.lines else f"{self.path}{self.text}"
        others = self.lines[1:SHOWN_LINES]
        if self.count == 1:
            return shown
        more = " …" if self.count > len(others) + 1 else ""
        what = "lines" if self.count > 2 else "line"
        at = f" ({what} {', '.join(map(str, others))}{more})" if others else ""
        return f"{shown}\n      and {self.count - 1} more of this kind{at}"


class DataError(InputError):
    """All that is wrong with a job's data: each kind of problem with its first lines, and how many there are."""

    def __init__(self, problems: Sequence[str], total: int, num_kinds: int | None = None) -> None:
        num_kinds = len(problems) if num_kinds is None else num_kinds
        shown = "\n".join(f"  {problem}" for problem in problems)
        hidden = num_kinds - len(problems)
        more = f"\n  … and problems of {many(hidden, 'more kind')}" if hidden > 0 else ""
        kinds = f" of {num_kinds} kinds" if 1 < num_kinds < total else ""
        super().__init__(
            f"{many(total, 'problem')}{kinds} in the data:\n{shown}{more}\n"
            "Correct them, then run jobs/check.py with the same data and method: it needs no accelerator."
        )
        self.problems, self.total = tuple(problems), total


class Problems:
    """The problems found so far. Memory has a bound: of a kind the first few lines are kept."""

    def __init__(self) -> None:
        self.total = 0
        self.groups: dict[tuple[str, str], Group] = {}

    def add(self, path: str, line: int | None, text: str) -> None:
        """One problem: of a line, or of the location itself."""
        self.total += 1
        kind = path, kind_of(text)
        if kind not in self.groups and len(self.groups) >= MOST_KINDS:
            kind, text = (path, OTHERS), OTHERS
        group = self.groups.setdefault(kind, Group(text, path))
        group.count += 1
        if line is not None and len(group.lines) <= SHOWN_LINES:
            group.lines.append(line)

    def error(self) -> DataError:
        """All of them as one error."""
        shown = [str(group) for group in list(self.groups.values())[:SHOWN_KINDS]]
        return DataError(shown, self.total, len(self.groups))


def kind_of(text: str) -> str:
    """A problem without what differs from line to line: quoted values, lists, numbers, positions."""
    text = re.sub(r"'(?:[^'\\]|\\.)*'…?|\"(?:[^\"\\]|\\.)*\"…?", "'", re.split(", near | at ▸ ", text)[0])
    return re.sub(r"\[[^\]]*\]|0x[0-9a-f]+|-?\d[\d.]*", "0", text)


class Rejects:
    """Lines that were left out (data.on_error=skip), with reasons: JSON lines in a temporary file."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._known: set[tuple[str, int]] = set()

    def add(self, path: str, line: int, problem: str, content: object) -> None:
        """Raises InputError where there is no room for it."""
        if (path, line) in self._known:  # refused by an earlier stage, too
            return
        self._known.add((path, line))
        self.count += 1
        self.first = self.first or f"{path}:{line}: {problem}"
        kept = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        row = {"file": path, "line": line, "problem": problem, "content": kept[:LONGEST_REJECT]}
        try:
            self._folder = self._folder or tempfile.TemporaryDirectory()
            with Path(self._folder.name, NAME).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise_if_no_room(error, "the lines left out")
            raise

    def content(self) -> bytes:
        """All of them as JSON lines."""
        return b"" if self._folder is None else Path(self._folder.name, NAME).read_bytes()


def check_skipped(rejects: Rejects, num_lines: int, problems: Problems) -> None:
    """Add a problem where so many lines were left out that something else is wrong."""
    if rejects.count > MOST_SKIPPED * num_lines:
        found = f"{rejects.count} of {many(num_lines, 'line')} can't be used, too many to skip, such as {rejects.first}"
        problems.add("data", None, f": {found}; data.on_error=stop names them")
