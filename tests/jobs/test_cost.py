"""The guess of what an epoch costs."""

import numpy as np
import pytest

from raytune_llm.jobs.config import load
from raytune_llm.jobs.cost import cost_note, duration, padded_tokens, size, work
from raytune_llm.jobs.prepare import prepare


def test_units():
    assert [duration(seconds) for seconds in (0.1, 45, 150, 10_000, 864_000)] == [
        "a second",
        "45 seconds",
        "2 minutes",
        "3 hours",
        "10 days",
    ]
    assert [work(flop) for flop in (3e9, 4e12, 83e12, 2e16)] == ["3 GFLOP", "4,000 GFLOP", "83 TFLOP", "20 PFLOP"]
    assert [size(count) for count in (270e6, 16e9)] == ["270 MB", "16.0 GB"]


@pytest.mark.parametrize(("method", "data", "is_guessed"), [("sft", "chat", True), ("rlhf", "preference", False)])
def test_a_check_guesses_where_training_is_no_sampling(method, data, is_guessed):
    prepared = prepare(load("check", ["model=demo", f"method={method}", f"data=demo_{data}"]))
    found = [finding.text for finding in prepared.diagnosis.findings if finding.kind == "cost"]
    assert bool(found) is is_guessed
    if found:
        facts = load("check", ["model=demo", "data=demo_chat"]).model.facts
        lengths = np.array([len(example["completion"].input_ids) for example in prepared.examples.train])
        tokens = padded_tokens(lengths, 8)
        assert 1.05 * lengths.sum() < tokens < 2 * lengths.sum()
        flop = 4 * facts.num_parameters * tokens
        assert f"an epoch with an adapter is about {work(flop)}: a second on an H100 or H200" in found[0]
        assert cost_note(facts, prepared.encoded.train.with_examples(prepared.examples.train), 8).text == found[0]


def test_a_batch_is_as_wide_as_its_longest_example():
    assert padded_tokens(np.full(10, 7), 4) == 70, "equal lengths need no padding"
    assert padded_tokens(np.array([1, 5, 3]), 8) == 15
    assert padded_tokens(np.array([1, 5, 3]), 1) == 9
    lengths = np.array([10] * 70 + [100] * 10)
    assert lengths.sum() < padded_tokens(lengths, 2) < padded_tokens(lengths, 8) < padded_tokens(lengths, 80) == 8000
