"""A data set of examples has a row for each, whatever their order and the size of its parts."""

import pytest
from test_example_table import with_all_fields

from raytune_llm.data.examples import IGNORED, TokenSequence
from raytune_llm.data.tables import arrow
from raytune_llm.data.tables.arrow import as_dataset
from raytune_llm.data.tables.example_table import ExampleTable


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_each_example_is_a_row(rows, monkeypatch):
    monkeypatch.setattr(arrow, "CHUNK_ROWS", rows)
    examples = [
        {"a": TokenSequence([5, 6, 7], [IGNORED, 6, 7], reference=-1.5), "b": TokenSequence([1], [9, 8])},
        {"a": TokenSequence([5], [IGNORED], reference=2.0), "b": TokenSequence([1, 2], [3])},
        {"a": TokenSequence([4, 4], [4, 4], reference=0.0), "b": TokenSequence([7], [7])},
    ]
    columns = {"x": ("a", "input_ids"), "y": ("a", "labels"), "z": ("a", "reference"), "of_b": ("b", "labels")}
    found = as_dataset(ExampleTable.of(examples), [2, 0, 1], {**columns, "none": ("b", "reference")})
    assert found.column_names == ["x", "y", "z", "of_b", "none"]
    for row, example in zip(found, [examples[2], examples[0], examples[1]], strict=True):
        assert row == {name: getattr(example[of], field) for name, (of, field) in columns.items()} | {"none": None}
    few = as_dataset(examples, [2, 1, 2, 2], columns)
    assert [few[i] == {name: found[row][name] for name in columns} for i, row in enumerate((0, 2, 0, 0))] == [True] * 4
    assert few.data.num_rows == 2, "examples that are not asked for were copied"


def test_references_are_kept():
    found = as_dataset(with_all_fields(), range(20), {"value": ("completion", "reference")})
    assert found["value"][:3] == [0.0, 1.0, 2.0]
