"""A table of examples is the list of them: same sequences, batches and counts, in any order, wherever it is sent."""

import pickle

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import tokenizer, write_base, write_records

from raytune_llm.data.examples import IGNORED, TeacherTopK, TokenSequence
from raytune_llm.data.files import load
from raytune_llm.data.tables.example_table import ExampleTable, pack
from raytune_llm.data.tokenizing.template import supply_template
from raytune_llm.data.tokenizing.tokens import Tokens
from raytune_llm.jobs import config
from raytune_llm.jobs.config import CONF

METHODS = sorted(file.stem for file in (CONF / "method").glob("*.yaml"))


@st.composite
def sequences(draw):
    ids = draw(st.lists(st.integers(0, 49_151), min_size=1, max_size=6))
    kind = draw(st.sampled_from(["runs", "own", "longer"]))
    if kind == "runs":
        return TokenSequence(ids, [token if draw(st.booleans()) else IGNORED for token in ids])
    size = len(ids) if kind == "own" else draw(st.integers(1, 8))
    return TokenSequence(ids, draw(st.lists(st.sampled_from([IGNORED, 1, 2, 3]), min_size=size, max_size=size)))


@settings(deadline=None, max_examples=150)
@given(st.lists(sequences(), min_size=1, max_size=8), st.data())
def test_a_table_is_the_list_of_its_examples(found, data):
    examples = [{"completion": one, "other": found[0]} for one in found]
    table = ExampleTable.of(examples)
    assert list(table) == examples and table == examples and table.names == ("completion", "other")
    rows = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=9))
    selected = table.select(rows)
    assert list(selected) == [examples[row] for row in rows] == list(pickle.loads(pickle.dumps(selected)))
    assert table[-1] == examples[-1] and list(table[1:]) == examples[1:]
    column, labels = table.columns["completion"], [one.labels for one in found]
    for first in (0, 1):
        assert column.num_labels(first).tolist() == [sum(x != IGNORED for x in one[first:]) for one in labels]
    width = max(map(len, labels))
    padded = column.padded_labels(np.arange(len(found)), width)
    assert padded.tolist() == [one + [IGNORED] * (width - len(one)) for one in labels]
    assert column.label_lengths.tolist() == list(map(len, labels))
    assert table.lengths().tolist() == [len(one.input_ids) + len(found[0].input_ids) for one in found]


def test_blocks_of_either_kind_of_labels_make_one_table():
    runs = [{"completion": TokenSequence([5, 6], [IGNORED, 6])}, {"completion": TokenSequence([7], [7])}]
    own = [{"completion": TokenSequence([5, 6], [9])}]
    parts = [pack(part, np.uint16) for part in (runs, own, runs)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert list(ExampleTable.from_arrays(joined)) == runs + own + runs
    assert joined["completion.ids"].dtype == np.uint16


@pytest.mark.parametrize("shape", ["llama", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_examples_of_every_method_are_kept_as_they_are(method, shape, tmp_path):
    own = config.load("train", [f"method={method}", "model=demo", "data=demo_sarcasm"]).method
    base = write_base(tmp_path / "base", shape)
    train, _ = write_records(tmp_path, 12, kinds=own.records)
    job = config.load(
        "train", [f"method={method}", f"model.name_or_path={base}", f"data.train={train}", "data.eval=null"]
    )
    words = tokenizer()
    supply_template(words)
    tokens = Tokens(words, max_tokens=24, is_encoder_decoder=shape == "t5")
    examples = [own.encode(record, tokens) for record in load(job.data, own.records, 0).train]
    assert examples and list(ExampleTable.of(examples)) == examples


def with_all_fields():
    generator = np.random.default_rng(0)
    examples = []
    for row in range(20):
        ids = generator.integers(0, 50, 5).tolist()
        top_k = TeacherTopK(generator.integers(0, 50, (row % 3, 2)).astype(np.int32), np.ones((row % 3, 3), np.float32))
        features = np.full((row % 3, 2, 4), row, np.float32)
        examples.append({"completion": TokenSequence(ids, ids, float(row), top_k, features)})
    return examples


def test_what_frozen_models_add_is_kept_and_selected():
    examples = with_all_fields()
    for table, rows in ((ExampleTable.of(examples), range(20)), (ExampleTable.of(examples).select([4, 2]), (4, 2))):
        for row, found in zip(rows, table, strict=True):
            one, other = found["completion"], examples[row]["completion"]
            assert (one.input_ids, one.labels, one.reference) == (other.input_ids, other.labels, other.reference)
            assert np.array_equal(one.teacher.ids, other.teacher.ids) and one.teacher.ids.dtype == np.int32
            assert np.array_equal(one.teacher.logprobs, other.teacher.logprobs)
            assert np.array_equal(one.features, other.features)


def test_a_field_in_some_sequences_only_is_refused():
    examples = with_all_fields()
    examples[3] = {"completion": TokenSequence([1], [1])}
    with pytest.raises(ValueError, match="19 of 20 sequences 'completion' have reference; give it to all"):
        ExampleTable.of(examples)


def test_what_is_no_table_is_refused():
    one = TokenSequence([1], [1])
    with pytest.raises(ValueError, match=r"example 1 has sequences \['b'\] but example 0 has \['a'\]"):
        ExampleTable.of([{"a": one}, {"b": one}])
    with pytest.raises(ValueError, match="a sequence has no labels; give IGNORED ones where there is no loss"):
        ExampleTable.of([{"a": TokenSequence([1], [])}])
    with pytest.raises(IndexError, match="example 1 of 1"):
        ExampleTable.of([{"a": one}])[1]


def test_nothing_is_a_table_too():
    table = ExampleTable.of([])
    assert len(table) == 0 and list(table) == [] and table == [] and table.select([]) == []


def test_few_examples_of_many_travel_alone():
    table = ExampleTable.of([{"completion": TokenSequence([row] * 100, [row] * 100)} for row in range(1000)])
    few = table.select([7, 3])
    assert len(pickle.dumps(few)) < 3000 < 400_000 < len(pickle.dumps(table))
    assert list(pickle.loads(pickle.dumps(few))) == [table[7], table[3]]


def test_the_workers_of_a_node_share_one_read_only_copy(ray_session):
    table = ExampleTable.of([{"completion": TokenSequence([row] * 100, [row] * 100)} for row in range(1000)])
    found = ray.get(ray.put(table))
    flat = found.columns["completion"].ids.flat
    assert not flat.flags.owndata and not flat.flags.writeable, "the tokens were copied"
    assert found == table
