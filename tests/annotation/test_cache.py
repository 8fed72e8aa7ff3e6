"""What a teacher said is kept by content."""

from dataclasses import replace

import pytest

from raytune_llm.annotation.cache import AnswerCache
from raytune_llm.annotation.teachers.base import Request, Response, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8, stop=(), seed=0)
ASKS = [Request("a", 0), Request("b\u2028c", 1)]
SAID = [Response("x\ny", 1, 2, 0.5, False), Response("z", 3, 4, 0.25, True)]


def test_answers_come_back_by_question(tmp_path):
    answers = AnswerCache.of(str(tmp_path), {"model": "m"}, SAMPLING)
    assert answers.read() == {} and answers.batch(ASKS) is None
    answers.add(ASKS, SAID, "m")
    again = AnswerCache.of(str(tmp_path), {"model": "m"}, SAMPLING)
    assert again.read() == dict(zip(ASKS, SAID, strict=True))
    assert again.batch(ASKS) == SAID and again.batch(ASKS[:1]) is None


def test_another_teacher_or_sampling_has_other_answers(tmp_path):
    roots = {
        AnswerCache.of(str(tmp_path), identity, sampling).root
        for identity, sampling in (
            ({"model": "m"}, SAMPLING),
            ({"model": "n"}, SAMPLING),
            ({"model": "m"}, replace(SAMPLING, temperature=0.5)),
            ({"model": "m"}, replace(SAMPLING, seed=1)),
        )
    }
    assert len(roots) == 4


def test_a_file_that_was_tampered_with_is_named(tmp_path):
    answers = AnswerCache.of(str(tmp_path), {"model": "m"}, SAMPLING)
    answers.add(ASKS, SAID, "m")
    (file,) = tmp_path.glob("annotations/*/*.jsonl")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=rf"{file.name}:2 is not an answer as it was kept.*remove the file"):
        answers.read()
