"""Responses as rationale and label."""

import pytest

from raytune_llm.annotation.reading import Reading, is_same_label, read
from raytune_llm.jobs import config


def prompt_of(option):
    return config.load(
        "annotate", ["teacher=local", "teacher.model.name_or_path=x/y", f"prompt={option}", "data.train=x.jsonl"]
    ).prompt


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("rationale", "Reason: cats\n sleep.\nAnswer: cat.\n", Reading("cats sleep.", "cat")),
        ("rationale", " cats sleep.\nAnswer: cat\nQuestion: and then?", Reading("cats sleep.", "cat")),
        ("rationale", "Sure! Reason: a. Answer: b\nAnswer: c\n\nReason: d\nAnswer: e", Reading("a. Answer: b", "c")),
        ("rationale", "cats sleep, so cat", None),
        ("rationale", "Answer: cat", None),
        ("rationale", "Reason: cats sleep.\nAnswer:", None),
        ("plain", "One lives here. The answer is no", Reading("One lives here.", "no")),
        ("explain", "Reason: cats sleep.\nSo: cat", Reading("cats sleep.", "cat")),
    ],
)
def test_read(option, text, expected):
    assert read(text, prompt_of(option)) == expected


def test_labels_are_compared_without_case_space_and_full_stop():
    assert is_same_label("Not  sarcastic.", "not sarcastic") and not is_same_label("yes", "no")
