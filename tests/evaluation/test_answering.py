"""What trials answer, and how the answers are scored."""

import math
import subprocess
import sys

import pytest

from raytune_llm.evaluation.answering import Answering
from raytune_llm.evaluation.metrics import answer_directions, answers, wholes


def answering(**changes):
    values = {"prompts": ([1], [2], [3]), "references": ("yes", "no", "yes"), "labels": ("yes", "no")}
    rest = {"max_new_tokens": 4, "stop_ids": (0,), "answer_after": None}
    return Answering(**values | rest | changes)


def test_labels_are_those_of_all_records_however_few_are_answered():
    found = wholes(answering().metrics(["yes", "yes", "maybe"]))
    assert found == pytest.approx(
        {
            "eval/accuracy": 1 / 3,
            "eval/f1_macro": (2 / 4 + 0) / 2,
            "eval/f1/yes": 2 / 4,
            "eval/f1/no": 0.0,
            "eval/valid_answers": 2 / 3,
        }
    )


def test_texts_are_scored_as_in_the_comparison():
    references, texts = ("a red cat", "two dogs", "birds"), ["red cat", "dogs", "birds"]
    found = answering(references=references, labels=None).metrics(texts)
    assert wholes(found) == pytest.approx(wholes(answers(references, texts)))


def test_an_answer_begins_after_its_mark():
    outputs = ["because yes. So: yes", "So: no", "yes"]
    assert answering(answer_after="So:").metrics(outputs)["eval/accuracy"].whole() == 1


@pytest.mark.parametrize("labels", [("yes", "no"), None])
def test_a_model_without_numbers_has_every_metric_undefined(labels):
    found = answering(labels=labels).undefined()
    assert found.keys() == answering(labels=labels).metrics(["a"] * 3).keys() == answer_directions(labels).keys()
    assert all(map(math.isnan, wholes(found).values()))


def test_it_costs_a_process_no_torch():
    code = (
        "import sys, raytune_llm.evaluation.answering; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
