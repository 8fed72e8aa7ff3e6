"""Rows of CSV and TSV, whose header names the columns.

Cells are text; those of keys that hold numbers or lists (STRUCTURED) are read as JSON. A first column without a name
that holds distinct whole numbers is an index of rows, as pandas writes one; it gets the name that pandas gives it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from typing import IO

from raytune_llm.data.dialects.values import INDEX_KEYS
from raytune_llm.data.findings import many
from raytune_llm.data.reading.problems import BadLine
from raytune_llm.data.reading.whole_json import decoded
from raytune_llm.data.records import quoted, show_keys
from raytune_llm.errors import InputError

LONGEST_LINE = 64 << 20
"""Bytes; a longer one is no record, and would fill the memory."""
DELIMITED = {".csv": ",", ".tsv": "\t"}
STRUCTURED = frozenset(
    ("choice", "label", "weight", "messages", "conversations", "contents", "history", "tools", "completions")
)
COMPARED = 10_000
"""Numbers of an index that are compared: one that occurs twice is none."""
UNNAMED = "the header has a column without a name; expected a name for each column"
csv.field_size_limit(LONGEST_LINE)


def delimited_rows(stream: IO[bytes], encoding: str, suffix: str) -> Iterator[tuple[int, object | BadLine]]:
    """Rows by the header's names; the number is that of a row's first line. Raises InputError where there is a header
    alone."""
    text, line = io.TextIOWrapper(stream, encoding, newline=""), 0
    try:
        first = text.readline()
        delimiter = ";" if suffix == ".csv" and first.count(";") > first.count(",") else DELIMITED[suffix]
        reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows = _Rows(header)
        if rows.wrong is not None:
            yield 1, BadLine(None, rows.wrong)
            return
        line, is_empty = reader.line_num, True
        for cells in reader:
            if cells:
                is_empty = False
                yield line + 1, rows.row(cells)
            line = reader.line_num
        if is_empty and header:
            raise InputError(f"has a header ({show_keys(header)}) and no rows below it")
    except csv.Error as error:
        yield line + 1, BadLine(None, f"no row of {suffix[1:].upper()}: {error}; the rest of the file isn't read")
    except UnicodeDecodeError as error:
        what = f"byte 0x{error.object[error.start]:02x} is not {error.encoding.upper()}"
        yield line + 1, BadLine(None, f"{what}; save the file as UTF-8; the rest of the file isn't read")


class _Rows:
    """Makes rows of cells."""

    def __init__(self, header: list[str]) -> None:
        index = next((name for name in INDEX_KEYS[:2] if name not in header), None)
        self._has_index = len(header) > 1 and header[0] == "" and index is not None
        self._names = [index or "", *header[1:]] if self._has_index else header
        self._numbers: set[str] = set()
        twice = next((name for name in header if header.count(name) > 1 and name), None)
        self.wrong = UNNAMED if not all(self._names) else None
        """Why the header names no columns."""
        if twice is not None:
            self.wrong = f"the header has the column {quoted(twice)} twice; expected a name for each column"

    def row(self, cells: list[str]) -> object | BadLine:
        """The row of these cells; empty ones are left out."""
        names = self._names
        if len(cells) != len(names):
            below = f"a row of {many(len(cells), 'cell')} below a header of {len(names)}"
            return BadLine(None, f"{below}; quote cells with commas")
        if self._has_index and (wrong := self._not_an_index(cells[0])):
            found = f"the first column has no name, and holds {quoted(cells[0])}, {wrong}"
            return BadLine(None, f"{found}; give the column a name in the header, or leave it out")
        row: dict[str, object] = {}
        for name, cell in zip(names, cells, strict=True):
            if cell == "":
                continue
            value = decoded(cell) if name in STRUCTURED else cell
            row[name] = cell if isinstance(value, BadLine) else value
        return row

    def _not_an_index(self, cell: str) -> str:
        """Why a cell isn't of an index; '' where it may be."""
        if not (cell.isascii() and cell.isdecimal()):
            return "which is no number of a row"
        if cell in self._numbers:
            return "which is the number of an earlier row, too"
        if len(self._numbers) < COMPARED:
            self._numbers.add(cell)
        return ""
