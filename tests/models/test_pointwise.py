import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama

from raytune_llm.models.pointwise import CompileError, compiled, fuse_pointwise

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS)).to(dtype)


def qwen3(dtype=torch.float32):
    """Norms of queries and keys too."""
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, **HEADS)).to(dtype)


def gemma3(dtype=torch.float32):
    """Norms by 1 + weight, another activation."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **HEADS)).to(dtype)


def logits_and_gradient(model, ids):
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    return logits, torch.autograd.grad(logits.float().square().sum(), embedded)[0]


class Counted:
    """Stands for the compiler: each function as it is, its calls counted by its name."""

    def __init__(self):
        self.calls = {}

    def __call__(self, function):
        def counted(*args, **kwargs):
            self.calls[function.__name__] = self.calls.get(function.__name__, 0) + 1
            return function(*args, **kwargs)

        return counted


@pytest.mark.parametrize(("make", "norms"), [(llama, 5), (qwen3, 9), (gemma3, 13)])
def test_every_norm_activation_and_rotation_is_compiled_and_given_back(make, norms):
    model, ids = make(), torch.arange(1, 13).view(2, 6)
    model.requires_grad_(False)
    expected = logits_and_gradient(model, ids)
    counted = Counted()
    with fuse_pointwise(model, counted):
        counted.calls.clear()
        found = logits_and_gradient(model, ids)
    assert counted.calls == {"forward": norms, "_gated": 2, "apply_rotary_pos_emb": 2}
    torch.testing.assert_close(found, expected)
    counted.calls.clear()
    logits_and_gradient(model, ids)
    assert counted.calls == {} and not any("forward" in vars(module) for module in model.modules())


def test_a_part_that_differs_is_refused_and_nothing_stays_replaced():
    class Doubled(nn.Module):
        """Named like the plain gated MLP, but isn't one."""

        def __init__(self, mlp):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
                mlp.gate_proj,
                mlp.up_proj,
                mlp.down_proj,
                mlp.act_fn,
            )

        def forward(self, x):
            return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    model, rotary = llama(), modeling_llama.apply_rotary_pos_emb
    model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)
    with pytest.raises(CompileError, match=r"of Doubled failed: it differs by 0\.5 of its size"):
        fuse_pointwise(model, Counted())
    assert not any("forward" in vars(module) for module in model.modules())
    assert modeling_llama.apply_rotary_pos_emb is rotary


def test_compiled_equals_eager_within_rounding():
    model, ids = llama(torch.bfloat16), torch.arange(1, 31).view(5, 6)
    model.requires_grad_(False)
    expected = logits_and_gradient(model, ids)
    with fuse_pointwise(model, compiled):
        found = logits_and_gradient(model, ids)
        assert logits_and_gradient(model, ids[:1, :3])[0].shape == (1, 3, 50)
    exact = logits_and_gradient(llama(torch.float64), ids)
    for one, other, true in zip(found, expected, exact, strict=True):
        assert (one.double() - true).norm() <= 1.1 * (other.double() - true).norm()
