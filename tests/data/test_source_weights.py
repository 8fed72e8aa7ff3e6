"""Weights of sources."""

from collections import Counter

from raytune_llm.data.mixture import mixed_indices
from raytune_llm.data.origins import Origins
from raytune_llm.data.reading.sources import Source


def test_whole_weights_repeat():
    assert mixed_indices([1.0, 2.0, 1.0, 3.0], 0) == [0, 1, 1, 2, 3, 3, 3]


def test_parts_draw_a_share_by_the_seed():
    weights = [1.0] * 5 + [0.5] * 100 + [2.25] * 8
    counts = Counter(mixed_indices(weights, 3))
    assert all(counts[i] == 1 for i in range(5))
    assert sum(counts[i] for i in range(5, 105)) == 50 and max(counts[i] for i in range(5, 105)) == 1
    assert sorted(counts[i] for i in range(105, 113)) == [2] * 6 + [3] * 2
    assert mixed_indices(weights, 3) == mixed_indices(weights, 3) != mixed_indices(weights, 4)


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
