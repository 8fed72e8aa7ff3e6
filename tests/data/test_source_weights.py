"""Shares of the records and weights of their sources."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from raytune_llm.data.mixture import epoch_indices, epoch_size
from raytune_llm.data.origins import Origins
from raytune_llm.data.reading.sources import Source, source_names
from raytune_llm.errors import InputError
from raytune_llm.jobs.config import load

SOURCES = np.array([0] * 5 + [1] * 100 + [2] * 8)


def epoch(subset=1.0, weights=(1.0, 1.0, 1.0), seed=3):
    return epoch_indices(len(SOURCES), subset=subset, weights=weights, sources=SOURCES, seed=seed)


def test_an_epoch_of_all_is_all_in_order():
    assert epoch() == range(113) and epoch_indices(7, seed=5) == range(7)


def test_whole_weights_repeat():
    sources = np.array([0, 1, 0, 2])
    assert epoch_indices(4, weights=[1.0, 2.0, 3.0], sources=sources, seed=0) == [0, 1, 1, 2, 3, 3, 3]
    assert epoch_indices(4, weights=[1.0, 0.0, 1.0], sources=sources, seed=0) == [0, 2, 3]


def test_parts_draw_a_share_by_the_seed():
    weights = (1.0, 0.5, 2.25)
    counts = Counter(epoch(weights=weights))
    assert all(counts[i] == 1 for i in range(5))
    assert sum(counts[i] for i in range(5, 105)) == 50 and max(counts[i] for i in range(5, 105)) == 1
    assert sorted(counts[i] for i in range(105, 113)) == [2] * 6 + [3] * 2
    assert epoch(weights=weights) == epoch(weights=weights) != epoch(weights=weights, seed=4)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 2.25), (0.0, 1.5, 0.3)])
def test_smaller_shares_are_part_of_larger_ones(weights):
    parts = [Counter(epoch(subset, weights)) for subset in (0.01, 0.125, 0.25, 0.5, 1.0)]
    for smaller, larger in itertools.pairwise(parts):
        assert smaller <= larger and smaller.total() < larger.total()
    assert [part.total() for part in parts] == [
        epoch_size((5, 100, 8), subset=subset, weights=weights) for subset in (0.01, 0.125, 0.25, 0.5, 1.0)
    ]


def test_shares_are_of_each_source_so_that_the_mixture_stays():
    counts = Counter(SOURCES[epoch(0.5)].tolist())
    assert counts == {0: 2, 1: 50, 2: 4}


def job_data(tmp_path, *overrides, train=("a.jsonl", "b.jsonl")):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"input_text": "x", "output_text": "y"}\n')
    paths = ",".join(str(tmp_path / name) for name in train)
    return load("train", ["model=demo", f"data.train=[{paths}]", *overrides]).data


def test_weights_by_name_replace_those_of_the_locations(tmp_path):
    data = job_data(tmp_path, "data.weights.b=0.5", "data.subset=0.25")
    assert (data.subset, data.weights) == (0.25, {"a": 1.0, "b": 0.5})
    assert [source.weight for source in data.sources("train")] == [1.0, 0.5]
    weighted = replace(data, train=[{"path": data.train[0], "weight": 3}, data.train[1]], weights={"b": 2.0})
    assert weighted.weights == {"a": 3.0, "b": 2.0} and weighted.mixture.weights == {"a": 3.0, "b": 2.0}
    assert data.with_train(data.train[0]).weights == {} and data.with_train(data.train[0]).subset == 0.25


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.weights.c=1", r"data\.weights\.c=1\.0 is not allowed; allowed: names of data.train's locations: a, b"),
        ("data.weights.a=-1", r"data\.weights\.a=-1\.0 is not allowed; allowed: 0 to 1000"),
        ("data.weights={a: 0, b: 0}", r"data\.weights=.* allowed: at least one above 0|expected a value for each key"),
        ("data.subset=0", r"data\.subset=0\.0 is not allowed; allowed: > 0 and ≤ 1"),
        ("data.subset=1.5", r"data\.subset=1\.5 is not allowed; allowed: > 0 and ≤ 1"),
    ],
)
def test_other_shares_and_weights_are_refused(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        job_data(tmp_path, override)


def test_one_location_has_no_weights(tmp_path):
    with pytest.raises(InputError, match=r"data\.weights\.a=2\.0 is not allowed; allowed: \{\} with one data\.train"):
        job_data(tmp_path, "data.weights.a=2", train=("a.jsonl",))


def test_names_of_locations():
    given = ["/x/a.jsonl.gz", "s3://y/b.csv", "hf:org/set:train", "/z/my data.jsonl", "folder/", "/x/c.v2.jsonl"]
    assert source_names([Source(path) for path in given]) == ["a", "b", "set", "3", "folder", "5"]
    assert source_names([Source("/x/a.jsonl"), Source("/y/a.csv"), Source("/y/b.csv")]) == ["0", "1", "b"]


def test_files_of_the_same_name_are_told_apart(tmp_path):
    origins = Origins()
    for path in ("/a/train.jsonl", "/b/train.jsonl", "/b/other.jsonl", "s3://c/train.jsonl"):
        origins.begin(Source(path))
        origins.add(7)
    assert [origins.where(i) for i in range(4)] == [
        "/a/train.jsonl:7",
        "/b/train.jsonl:7",
        "other.jsonl:7",
        "s3://c/train.jsonl:7",
    ]
    assert origins.source(2) == "/b/other.jsonl"
