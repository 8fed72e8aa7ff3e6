"""Reference log-probabilities are those of transformers' own loss; whatever is filled in, the batches don't show."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_loss import examples, tiny

from raytune_llm.models.frozen import with_features, with_references, with_teacher_top_k


def test_they_are_the_models_own_log_probabilities():
    model, rows = tiny(), examples(7, names=("chosen", "rejected"))
    found = with_references(model, rows, pad_id=0, batch_size=3)
    assert model.training
    model.eval()
    for before, after in zip(rows, found, strict=True):
        for name in ("chosen", "rejected"):
            one = before[name]
            with torch.no_grad():
                mean = model(torch.tensor([one.input_ids]), labels=torch.tensor([one.labels])).loss.item()
            num_labels = sum(label != -100 for label in one.labels[1:])
            assert after[name].reference == pytest.approx(-mean * num_labels, rel=1e-5)
            assert one.reference is None and after[name].labels == one.labels


FILLERS = {
    "reference": with_references,
    "teacher": partial(with_teacher_top_k, top_k=3, vocabulary=20),
    "features": partial(with_features, layers=(0, -1)),
}


@pytest.mark.parametrize("field", FILLERS)
def test_each_sequence_gets_its_own_values_whatever_its_batch(field):
    model, rows = tiny().double(), examples(7, names=("chosen", "rejected"))
    together = FILLERS[field](model, rows, pad_id=0, batch_size=5)
    alone = [FILLERS[field](model, [row], pad_id=0, batch_size=1)[0] for row in rows]
    for row, one, other in zip(rows, together, alone, strict=True):
        assert list(row) == list(one)
        for name, sequence in row.items():
            found, expected = (getattr(example[name], field) for example in (one, other))
            if field == "teacher":
                np.testing.assert_array_equal(found.ids, expected.ids)
                found, expected = found.logprobs, expected.logprobs
            if field != "reference":
                assert len(found) == sum(label != -100 for label in sequence.labels[1:])
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert getattr(sequence, field) is None and replace(one[name], **{field: None}) == sequence


def test_no_examples_are_no_examples():
    assert [fill(tiny(), [], pad_id=0, batch_size=3) for fill in FILLERS.values()] == [[], [], []]
