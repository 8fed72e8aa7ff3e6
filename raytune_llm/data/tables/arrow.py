"""Examples as a `datasets` data set, for trainers that take nothing else: Arrow arrays, made a few thousand rows at a
time, so that no list of all token ids ever exists."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raytune_llm.data.examples import Example
from raytune_llm.data.tables.example_table import Column, ExampleTable

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_ROWS = 4096


def as_dataset(examples: Sequence[Example], indices: Sequence[int], columns: Mapping[str, tuple[str, str]]) -> Dataset:
    """A row for each of `indices`, in their order; examples that they don't name aren't copied. `columns`: by their
    names, the name of a sequence and of its field (input_ids, labels or reference)."""
    import pyarrow
    from datasets import Dataset

    table, parts = ExampleTable.of(examples), []
    named, rows = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if len(named) < len(table):
        table = table.select(named)
    for first in range(0, len(table), CHUNK_ROWS):
        part = table[first : first + CHUNK_ROWS]
        parts.append(pyarrow.table({name: _array(part.columns[of], field) for name, (of, field) in columns.items()}))
    return Dataset(pyarrow.concat_tables(parts), fingerprint=uuid.uuid4().hex).select(rows)


def _array(column: Column, field: str) -> Any:
    """A field of all rows, as Arrow's array."""
    import pyarrow

    if field == "reference":
        return pyarrow.nulls(len(column)) if column.references is None else pyarrow.array(column.references)
    rows = column.ids.compact() if field == "input_ids" else column.all_labels()
    ends = np.append(0, np.cumsum(rows.lengths)).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(rows.flat.astype(np.int32)))
