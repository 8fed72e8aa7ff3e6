"""Drift is the KL that a closed form gives: exact over a whole vocabulary, a lower bound over a part of it, 0 for the
base itself."""

import pytest
import torch
from packed_oracle import VOCABULARY, make_examples, make_model

from raytune_llm.data.examples import IGNORED
from raytune_llm.evaluation.loss import evaluate
from raytune_llm.evaluation.terms import DRIFT, DRIFT_LOSS
from raytune_llm.methods.common.drift import ANSWER, drift_terms
from raytune_llm.models.frozen import with_references, with_teacher_top_k

READING = {"pad_id": 0, "batch_size": 4}


def guard(base, top_k=VOCABULARY):
    """Answers with what the base gives of their tokens."""
    is_encoder_decoder = bool(base.config.is_encoder_decoder)
    examples = make_examples(5, is_encoder_decoder=is_encoder_decoder, names=[ANSWER])
    examples = with_references(base, examples, **READING)
    return with_teacher_top_k(base, examples, top_k=top_k, vocabulary=VOCABULARY, **READING)


def moved(kind, factor):
    model = make_model(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def logprobs(model, sequence):
    """(labels that count, V), by the model's plain forward pass."""
    ids, labels = torch.tensor([sequence.input_ids]), torch.tensor([sequence.labels])
    if model.config.is_encoder_decoder:
        return model(input_ids=ids, labels=labels).logits[0].log_softmax(-1), labels[0]
    counts = labels[0, 1:] != IGNORED
    return model(input_ids=ids).logits[0, :-1][counts].log_softmax(-1), labels[0, 1:][counts]


def measured(model, examples):
    return evaluate(model, examples, drift_terms, **READING).metrics()


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_drift_is_the_mean_kl_of_the_answers_tokens(kind):
    base, tuned = make_model(kind), moved(kind, 0.9)
    examples = guard(base)
    apart, lost = [], []
    for example in examples:
        (p, labels), (q, _) = logprobs(base, example[ANSWER]), logprobs(tuned, example[ANSWER])
        apart.append((p.exp() * (p - q)).sum(-1))
        lost.append((p - q).gather(-1, labels.unsqueeze(-1)).squeeze(-1))
    found = measured(tuned, examples)
    assert found.keys() == {DRIFT, DRIFT_LOSS}
    assert found[DRIFT] == pytest.approx(torch.cat(apart).mean().item(), rel=1e-6)
    assert found[DRIFT_LOSS] == pytest.approx(torch.cat(lost).mean().item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_base_itself_has_none(kind):
    base = make_model(kind)
    for top_k in (4, VOCABULARY):
        found = measured(base, guard(base, top_k))
        assert found == pytest.approx({DRIFT: 0.0, DRIFT_LOSS: 0.0}, abs=1e-6)


def test_fewer_tokens_apart_are_a_lower_bound():
    base, tuned = make_model(), moved("llama", 0.9)
    found = [measured(tuned, guard(base, top_k))[DRIFT] for top_k in (1, 4, 16, VOCABULARY)]
    assert 0 < found[0] < found[1] < found[2] < found[3]


def test_a_larger_change_is_more():
    base = make_model()
    near, far = (measured(moved("llama", factor), guard(base))[DRIFT] for factor in (0.95, 0.7))
    assert near < far
