"""The packed head's word on a teacher's candidates is the model's own, value and gradient, in every architecture."""

import pytest
import torch
from packed_oracle import CONFIGS, make_examples, make_model, table_of

from raytune_llm.models.forward import outputs
from raytune_llm.models.frozen import with_teacher_top_k
from raytune_llm.training.packed.label_head import LabelHead

K = 4


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_candidates_equal_the_models_own(kind):
    model = make_model(kind)
    if kind == "gemma2":  # transformers caps its logits in fp32
        model = model.float()
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    examples = make_examples(6, is_encoder_decoder=is_encoder_decoder)
    teacher = make_model(kind).to(model.dtype)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.9)
    with_top_k = with_teacher_top_k(teacher, examples, top_k=K, vocabulary=50, pad_id=0, batch_size=4)
    rows = torch.tensor([3, 0, 5, 3]).numpy()
    expected = outputs(model, [with_top_k[row]["completion"] for row in rows], pad_id=0)
    parameter = next(
        p
        for name, p in model.named_parameters()
        if name.endswith(("q_proj.weight", "qkv_proj.weight", ".q.weight")) or "query_key" in name
    )
    probe = torch.randn(expected.top_k_logprobs.shape, dtype=expected.top_k_logprobs.dtype)
    (slope,) = torch.autograd.grad((expected.top_k_logprobs * probe).sum(), parameter)
    head = LabelHead(model)
    found = head.outputs(table_of(with_top_k, model).batch("completion", rows))
    width = expected.top_k_logprobs.shape[1]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if model.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(found.top_k_logprobs[:, :width], expected.top_k_logprobs, **tolerance)
    torch.testing.assert_close(found.teacher_logprobs[:, :width], expected.teacher_logprobs, rtol=0, atol=0)
    (packed_slope,) = torch.autograd.grad((found.top_k_logprobs[:, :width] * probe).sum(), parameter)
    torch.testing.assert_close(packed_slope, slope, **tolerance)
    head.remove()
