"""Reference log-probabilities are those of transformers' own loss, in the examples' order."""

import pytest
import torch
from test_loss import examples, tiny

from raytune_llm.models.frozen import with_references


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


def test_no_examples_are_no_examples():
    assert with_references(tiny(), [], pad_id=0, batch_size=3) == []
