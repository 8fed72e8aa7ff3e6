"""Logits of half-precision bases keep the precision of their sums."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from raytune_llm.models import fp32_head
from raytune_llm.models.fp32_head import FP32Head, fp32_linear, use_fp32_head

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "untied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "scaled": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "divided": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 0.5}),
    "capped": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 20.0}),
}


def made(kind, dtype=torch.bfloat16):
    """With logits of 16 and more."""
    model, config, more = MODELS[kind]
    torch.manual_seed(0)
    found = model(config(**SIZES, **more)).eval()
    with torch.no_grad():
        found.get_output_embeddings().weight.normal_(std=2.0)
    return found.to(dtype)


def logits_and_hidden(model, ids, head):
    seen = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        logits = model(ids).logits
    hook.remove()
    return logits, seen[0]


def after_head(kind, logits):
    factor = {"scaled": 0.25, "divided": 2.0}.get(kind, 1.0)
    return 20 * (logits / 20).tanh() if kind == "capped" else factor * logits


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_the_hidden_states_in_full_precision(kind):
    ids = torch.arange(1, 25).view(2, 12)
    plain, model = made(kind), made(kind)
    use_fp32_head(model)
    head = model.get_output_embeddings()
    assert type(head) is FP32Head and (head.weight is model.get_input_embeddings().weight) == (
        plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    )
    found, hidden = logits_and_hidden(model, ids, head)
    exact = after_head(kind, hidden.double() @ head.weight.double().T)
    assert found.dtype == torch.float32 and found.abs().max() > 16
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    rounded, _ = logits_and_hidden(plain, ids, plain.get_output_embeddings())
    assert (rounded.double() - exact).abs().max() > 0.02


def test_an_adapted_head_of_peft_gives_fp32_logits_too():
    model = get_peft_model(made("untied"), LoraConfig(r=4, target_modules=["lm_head", "q_proj"])).eval()
    nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight, std=0.5)
    use_fp32_head(model.get_base_model())
    layer = model.base_model.model.lm_head
    found, hidden = logits_and_hidden(model, torch.arange(1, 13)[None], layer)
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    exact = hidden.double() @ layer.weight.double().T + hidden.double() @ a.T @ b.T * layer.scaling["default"]
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_full_precision_bases_and_copies_stay_as_they_are():
    for dtype in (torch.float32, torch.float64):
        model = made("tied", dtype)
        use_fp32_head(model)
        assert type(model.lm_head) is nn.Linear
    model = made("tied")
    use_fp32_head(model)
    use_fp32_head(model)
    assert type(copy.deepcopy(model).lm_head) is FP32Head
    assert list(model.state_dict()) == list(made("tied").state_dict())


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_blocks_of_the_weights_do_not_change_the_product(monkeypatch, block):
    monkeypatch.setattr(fp32_head, "BLOCK_ELEMENTS", block)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 3, 16), (50, 16), (50,)))
    found = fp32_linear(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    assert found.shape == (2, 3, 50)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(fp32_linear(x.float(), weight.float(), None), nn.functional.linear(x.float(), weight.float()))
