"""Label log-probabilities and their gradients against plain logits."""

import pytest
import torch
from packed_oracle import make_examples, make_model, plain_outputs, table_of
from torch import nn

from raytune_llm.models.fp32_head import fp32_linear
from raytune_llm.models.pointwise import compiled
from raytune_llm.training.packed import label_head
from raytune_llm.training.packed.label_head import LabelHead, _label_chunk, _LabelLogprobs


@pytest.mark.parametrize("kind", ["llama", "gemma2", "t5"])
def test_outputs_equal_those_of_plain_logits(kind):
    import numpy as np

    examples = make_examples(6, is_encoder_decoder=kind == "t5")
    model = make_model(kind)
    expected = plain_outputs(model, [example["completion"] for example in examples])
    found = LabelHead(model).outputs(table_of(examples, model).batch("completion", np.arange(6)))
    width = expected.mask.shape[1]
    for one, other in (
        (found.logprobs, expected.logprobs),
        (found.mask, expected.mask),
        (found.correct, expected.correct),
    ):
        torch.testing.assert_close(one[:, :width], other, rtol=1e-12, atol=1e-12)
        assert not one[:, width:].any()


@pytest.mark.parametrize("chunk_elements", [1, 1 << 20])
@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 1.5)])
def test_gradients_equal_autograd(monkeypatch, chunk_elements, factor, cap):
    monkeypatch.setitem(label_head.CHUNK_ELEMENTS, "cpu", chunk_elements)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    bias = torch.randn(11, generator=generator, dtype=torch.float64)
    labels, upstream = torch.tensor([0, 3, 10, 3, 7]), torch.randn(5, generator=generator, dtype=torch.float64)
    logits = nn.functional.linear(hidden, weight, bias) * factor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    (slope,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    found, correct = _LabelLogprobs.apply(hidden, weight, bias, labels, (factor, cap), _label_chunk)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(correct, (logits.argmax(1) == labels).double())
    (found_slope,) = torch.autograd.grad((found * upstream).sum(), hidden)
    torch.testing.assert_close(found_slope, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("after_head", [(1.0, None), (2.0, 1.5)])
def test_compiled_it_equals_itself_uncompiled(after_head):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 301, generator=generator) * 8
    labels = torch.randint(0, 301, (6, 1), generator=generator)
    kept = logits.clone()
    torch.testing.assert_close(
        compiled(_label_chunk)(logits, labels, after_head, True), _label_chunk(logits, labels, after_head, True)
    )
    assert torch.equal(logits, kept) and _label_chunk(logits, labels, after_head, False)[2] is None


def test_fp32_stays_accurate_at_extreme_logits():
    hidden = torch.tensor([[300.0, 0.0], [0.0, 1e-4]])
    found, _ = _LabelLogprobs.apply(hidden, torch.eye(2), None, torch.tensor([1, 1]), (1.0, None), _label_chunk)
    torch.testing.assert_close(found.double(), hidden.double().log_softmax(1)[:, 1], rtol=1e-6, atol=0)


def test_a_bf16_model_with_large_logits_is_not_refused_for_its_own_rounding(monkeypatch):
    """As on a GPU, where only the model's own head rounds its logits."""
    monkeypatch.setattr(label_head, "_logits", fp32_linear)
    model = make_model(dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.zeros_like(head.weight), requires_grad=False)
    ids = (torch.arange(8) * 7919 + 1) % head.out_features  # those that are compared
    with torch.no_grad():
        hidden = model.model(input_ids=ids.view(1, -1)).last_hidden_state[0, :-1].float()
        targets = torch.full((len(hidden), head.out_features), 116.2).scatter_(1, ids[1:, None], 119.9)
        head.weight.copy_(torch.linalg.lstsq(hidden, targets).solution.T)
        logits = model(input_ids=ids.view(1, -1)).logits
    assert logits.abs().max() > 100
    LabelHead(model).remove()


def test_a_model_that_does_more_to_its_logits_is_refused():
    model = make_model()
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, logits: logits + torch.arange(logits.shape[-1]))
    with pytest.raises(ValueError, match="does something to its logits"):
        LabelHead(model)


def test_the_model_is_itself_again_after_remove():
    model = make_model()
    ids = torch.arange(1, 9).view(1, 8)
    before = model(ids).logits
    head = LabelHead(model)
    assert torch.equal(model(ids).logits, before)
    head.remove()
    assert not model.get_output_embeddings()._forward_pre_hooks
