"""Encoded records as flat arrays instead of lists of Python numbers: 2 or 4 bytes a token, 8 for each run of labels.

Labels of causal bases repeat input_ids or are IGNORED, so that the runs that carry loss say it all; others are kept as
they are. Tables are sequences of examples; what needs many at once reads their columns. They pickle as buffers, which
Ray's object store shares among the workers of a node. Leaves out files (array_files.py) and encoding (data/encoding/).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from raytune_llm.data.examples import IGNORED, Example, TeacherTopK, TokenSequence
from raytune_llm.data.tables.ragged import Ragged, Rows

Arrays = Mapping[str, NDArray[Any]]
"""The arrays of a table, by the name of the sequence, a dot and the name of the array (`PARTS`)."""
PARTS = ("ids", "lengths", "runs", "num_runs", "labels", "num_labels")


@dataclass(frozen=True, eq=False)
class Column:
    """One named sequence of n examples."""

    ids: Ragged
    """input_ids; integers."""
    runs: Ragged
    """Of each row the stretches [first, end) of tokens whose label is the token itself, (runs, 2); int32."""
    labels: Ragged
    """Labels of rows that runs can't describe, empty for all others; int32."""
    references: NDArray[np.float64] | None = None
    """TokenSequence.reference, (n,)."""
    teacher: tuple[Ragged, Ragged] | None = None
    """Ids and logprobs of TokenSequence.teacher."""
    features: Ragged | None = None
    """TokenSequence.features."""
    num_bytes: NDArray[np.int64] | None = None
    """TokenSequence.num_bytes, (n,)."""

    def __len__(self) -> int:
        return len(self.ids)

    def sequence(self, row: int) -> TokenSequence:
        """A row as lists."""
        ids = self.ids[row].tolist()
        labels = self.labels[row].tolist()
        if not labels:
            labels = [IGNORED] * len(ids)
            for first, end in self.runs[row].tolist():
                labels[first:end] = ids[first:end]
        return TokenSequence(
            ids,
            labels,
            reference=None if self.references is None else float(self.references[row]),
            teacher=None if self.teacher is None else TeacherTopK(self.teacher[0][row], self.teacher[1][row]),
            features=None if self.features is None else self.features[row],
            num_bytes=None if self.num_bytes is None else int(self.num_bytes[row]),
        )

    def select(self, rows: Rows) -> Column:
        """These rows."""
        teacher = None if self.teacher is None else (self.teacher[0].select(rows), self.teacher[1].select(rows))
        return Column(
            self.ids.select(rows),
            self.runs.select(rows),
            self.labels.select(rows),
            None if self.references is None else self.references[rows],
            teacher,
            None if self.features is None else self.features.select(rows),
            None if self.num_bytes is None else self.num_bytes[rows],
        )

    def with_field(self, field: str, values: Sequence[Any]) -> Column:
        """The column with reference, teacher, features or num_bytes, by their names in TokenSequence; a value a row."""
        if field == "reference":
            return replace(self, references=np.array(values, dtype=np.float64))
        if field == "teacher":
            parts = ([value.ids for value in values], [value.logprobs for value in values])
            return replace(self, teacher=(Ragged.join(parts[0]), Ragged.join(parts[1])))
        if field == "features":
            return replace(self, features=Ragged.join(values))
        if field == "num_bytes":
            return replace(self, num_bytes=np.array(values, dtype=np.int64))
        raise ValueError(f"{field} is no field of a token sequence that is filled in")

    @property
    def label_lengths(self) -> NDArray[np.int64]:
        """Length of each row's labels, IGNORED ones included; (n,)."""
        return np.where(self.labels.lengths > 0, self.labels.lengths, self.ids.lengths)

    def num_labels(self, first: int = 0) -> NDArray[np.int64]:
        """Labels that count from the first-th token on, (n,)."""
        runs = self.runs.compact()
        sizes = np.maximum(runs.flat[:, 1] - np.maximum(runs.flat[:, 0], first), 0)
        own = self.labels.compact()
        at = np.arange(len(own.flat)) - np.repeat(own.starts, own.lengths)
        counted = (own.flat != IGNORED) & (at >= first)
        of_runs = np.bincount(runs.owners(), weights=sizes, minlength=len(self))
        of_own = np.bincount(own.owners(), weights=counted, minlength=len(self))
        return (of_runs + of_own).astype(np.int64)

    def all_labels(self) -> Ragged:
        """Labels of all rows."""
        lengths = self.label_lengths
        width = int(lengths.max(initial=0))
        padded = self.padded_labels(np.arange(len(self)), width)
        return Ragged.of(padded[np.arange(width) < lengths[:, None]], lengths)

    def padded_labels(self, rows: Rows, width: int) -> NDArray[np.int64]:
        """Labels of these rows with IGNORED on their right; (len(rows), width)."""
        runs = self.runs.select(rows).compact()
        edges = np.zeros((len(rows), width + 1), dtype=np.int32)
        np.add.at(edges, (runs.owners(), runs.flat[:, 0]), 1)
        np.subtract.at(edges, (runs.owners(), runs.flat[:, 1]), 1)
        found = np.where(edges[:, :-1].cumsum(1) > 0, self.ids.padded(rows, width, IGNORED), IGNORED)
        has_own = self.labels.lengths[rows] > 0
        return np.where(has_own[:, None], self.labels.padded(rows, width, IGNORED), found) if has_own.any() else found


class ExampleTable(Sequence[Example]):
    """Examples of the same named sequences, each made when it is asked for. Rows and columns never change."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)
        self._size = len(next(iter(columns.values()))) if columns else 0

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleTable:
        """The examples as a table; a table as it is.

        Raises:
            ValueError: as `pack` does, or a field of frozen models is set in some sequences of a name only.
        """
        if isinstance(examples, ExampleTable):
            return examples
        table = cls.from_arrays(pack(examples))
        for name in table.columns:
            for field in ("reference", "teacher", "features", "num_bytes"):
                values = [getattr(example[name], field) for example in examples]
                present = sum(value is not None for value in values)
                if present == len(values):
                    table = table.with_field(name, field, values)
                elif present:
                    raise ValueError(f"{present} of {len(values)} sequences {name!r} have {field}; give it to all")
        return table

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ExampleTable:
        """The table whose `pack` gave these arrays."""
        names = dict.fromkeys(key.rpartition(".")[0] for key in arrays)
        columns = {}
        for name in names:
            ids, lengths, runs, num_runs, labels, num_labels = (arrays[f"{name}.{part}"] for part in PARTS)
            columns[name] = Column(Ragged.of(ids, lengths), Ragged.of(runs, num_runs), Ragged.of(labels, num_labels))
        return cls(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sequences of each example."""
        return tuple(self.columns)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleTable: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleTable:
        if isinstance(index, slice):
            return self.select(np.arange(self._size)[index])
        row = operator.index(index)
        if not -self._size <= row < self._size:
            raise IndexError(f"example {row} of {self._size}")
        row %= self._size
        return {name: column.sequence(row) for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(self._size))

    def __eq__(self, other: object) -> bool:
        """Whether the other is a sequence of equal examples, in a table or not."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return ExampleTable, (self.columns,)

    def select(self, rows: Sequence[int] | Rows) -> ExampleTable:
        """These examples, in this order; their tokens are not copied."""
        index = np.asarray(rows, dtype=np.int64)
        return ExampleTable({name: column.select(index) for name, column in self.columns.items()})

    def with_field(self, name: str, field: str, values: Sequence[Any]) -> ExampleTable:
        """The table with reference, teacher, features or num_bytes in a named sequence; a value an example."""
        return ExampleTable(self.columns | {name: self.columns[name].with_field(field, values)})

    def num_bytes(self) -> NDArray[np.int64] | None:
        """Of each example's targets, all its sequences together, (n,); None where they aren't known."""
        known = [column.num_bytes for column in self.columns.values() if column.num_bytes is not None]
        return np.sum(known, axis=0) if len(known) == len(self.columns) else None

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example: input_ids of all its sequences; (n,)."""
        return np.sum([column.ids.lengths for column in self.columns.values()], axis=0, dtype=np.int64)


def pack(examples: Sequence[Example], dtype: type[np.integer[Any]] = np.int32) -> dict[str, NDArray[Any]]:
    """The arrays of the examples' input_ids and labels; ids as `dtype`. No examples give no arrays.

    Raises:
        ValueError: examples have sequences of different names, or a sequence has no labels.
    """
    names = tuple(examples[0]) if examples else ()
    for index, example in enumerate(examples):
        if example.keys() != set(names):
            raise ValueError(
                f"example {index} has sequences {sorted(example)} but example 0 has {sorted(names)}; encode all "
                "records with one method"
            )
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        packed = _pack([example[name] for example in examples], dtype)
        arrays |= {f"{name}.{part}": array for part, array in zip(PARTS, packed, strict=True)}
    return arrays


def _pack(sequences: Sequence[TokenSequence], dtype: type[np.integer[Any]]) -> tuple[NDArray[Any], ...]:
    """The arrays of one name, in the order of PARTS."""
    ids, labels = (_joined([getattr(one, key) for one in sequences]) for key in ("input_ids", "labels"))
    if any(labels.lengths[ids.lengths > 0] == 0):
        raise ValueError("a sequence has no labels; give IGNORED ones where there is no loss")
    runs = _runs(ids, labels)
    nothing = np.zeros(len(sequences), dtype=np.int32)
    found = ids.flat.astype(dtype), ids.lengths.astype(np.int32)
    if runs is not None:
        return *found, runs.flat, runs.lengths.astype(np.int32), np.zeros(0, dtype=np.int32), nothing
    return *found, np.zeros((0, 2), dtype=np.int32), nothing, labels.flat, labels.lengths.astype(np.int32)


def _joined(lists: Sequence[Sequence[int]]) -> Ragged:
    lengths = np.array([len(items) for items in lists], dtype=np.int64)
    return Ragged.of(np.fromiter(chain.from_iterable(lists), dtype=np.int32, count=int(lengths.sum())), lengths)


def _runs(ids: Ragged, labels: Ragged) -> Ragged | None:
    """The stretches of labels that repeat ids, (runs, 2) a row; None where labels aren't ids or IGNORED."""
    if not np.array_equal(ids.lengths, labels.lengths):
        return None
    counts = labels.flat != IGNORED
    if not np.array_equal(labels.flat[counts], ids.flat[counts]):
        return None
    is_first = np.zeros(len(counts) + 1, dtype=bool)
    is_first[ids.starts], is_first[-1] = True, True
    begins = counts & (is_first[:-1] | ~np.append(False, counts[:-1]))
    ends = counts & (is_first[1:] | ~np.append(counts[1:], False))
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    owners = ids.owners()[first]
    runs = np.stack([first, last + 1], axis=1) - ids.starts[owners][:, None]
    return Ragged.of(runs.astype(np.int32), np.bincount(owners, minlength=len(ids)))
