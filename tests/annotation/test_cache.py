"""Responses are cached by content."""

import json
from dataclasses import replace

import pytest

from raytune_llm.annotation.cache import AnswerCache
from raytune_llm.annotation.teachers.base import Request, Response, Sampling
from raytune_llm.errors import InputError

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8, stop=(), seed=0)
REQUESTS = [Request("a", 0), Request("b\u2028c", 1)]
RESPONSES = [Response("x\ny", 1, 2, 0.5, False), Response("z", 3, 4, 0.25, True)]


def test_responses_come_back_by_request(tmp_path):
    cache = AnswerCache.of_teacher(str(tmp_path), {"model": "m"}, SAMPLING)
    assert cache.read() == {} and cache.batch(REQUESTS) is None
    cache.add(REQUESTS, RESPONSES, "m")
    again = AnswerCache.of_teacher(str(tmp_path), {"model": "m"}, SAMPLING)
    assert again.read() == dict(zip(REQUESTS, RESPONSES, strict=True))
    assert again.batch(REQUESTS) == RESPONSES and again.batch(REQUESTS[:1]) is None


def test_another_teacher_or_sampling_has_another_cache(tmp_path):
    roots = {
        AnswerCache.of_teacher(str(tmp_path), identity, sampling).root
        for identity, sampling in (
            ({"model": "m"}, SAMPLING),
            ({"model": "n"}, SAMPLING),
            ({"model": "m"}, replace(SAMPLING, temperature=0.5)),
            ({"model": "m"}, replace(SAMPLING, seed=1)),
        )
    }
    assert len(roots) == 4


def test_a_damaged_file_is_named(tmp_path):
    cache = AnswerCache.of_teacher(str(tmp_path), {"model": "m"}, SAMPLING)
    cache.add(REQUESTS, RESPONSES, "m")
    (file,) = tmp_path.glob("annotations/*/*.jsonl")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(InputError, match=rf"{file.name}:2 is damaged .*; remove the file to send its requests again"):
        cache.read()


def test_stored_caches_stay_valid(tmp_path):
    """Names and rows are those of published caches."""
    cache = AnswerCache.of_teacher(str(tmp_path), {"model": "m"}, SAMPLING)
    assert cache.root == f"{tmp_path}/annotations/c271c0c5f1674a47"
    cache.add(REQUESTS, RESPONSES, "m")
    lines = (
        tmp_path.joinpath("annotations/c271c0c5f1674a47/3ab8c2a9b3a10bfaa59cbce6e4e80126.jsonl").read_text().split("\n")
    )
    assert json.loads(lines[0]) == {
        "prompt_hash": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "teacher": "m",
        "prompt": "a",
        "sample": 0,
        "text": "x\ny",
        "num_prompt_tokens": 1,
        "num_completion_tokens": 2,
        "cost_usd": 0.5,
        "is_cut": False,
    }
