"""The stacked forward against PEFT, one adapter at a time."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from raytune_llm.models.adapters.lora import LoRA
from raytune_llm.models.base import linear_targets
from raytune_llm.models.lora_weights import initial_weights
from raytune_llm.models.stacked_lora import AdapterStack

LORA = LoRA(rate_factor=1.0, alpha=16.0, dropout=0.0, targets=None, rslora=False, dora=False)
BASE = -1


def llama(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=None,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def t5() -> PreTrainedModel:
    torch.manual_seed(0)
    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).double().eval()


def adapters(model: PreTrainedModel, ranks=(1, 4, 8), seed=3):
    """Random adapters, B not zero."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rank in ranks:
        weights = initial_weights(model, linear_targets(model), lora_rank=rank, seed=seed + rank)
        drawn = {name: torch.randn(b.shape, generator=generator).to(b) for name, (_, b) in weights.items()}
        found.append({name: (a, 0.3 * drawn[name]) for name, (a, _) in weights.items()})
    return found


def peft_model(model: PreTrainedModel, weights) -> PreTrainedModel:
    rank = next(iter(weights.values()))[0].shape[0]
    adapted = LORA.apply(model, lora_rank=rank, seed=0).eval()
    for name, (a, b) in weights.items():
        layer = adapted.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b)
    return adapted


def filled(model: PreTrainedModel, every, *, trainable: bool = False) -> AdapterStack:
    stack = AdapterStack(model, linear_targets(model), capacity=4, max_lora_rank=8, trainable=trainable)
    for slot, weights in enumerate(every):
        rank = next(iter(weights.values()))[0].shape[0]
        stack.write(slot, weights, LORA.alpha / rank)
    return stack


def expected_rows(make, every, slots, run):
    """run(model) of each row through PEFT alone."""
    found = []
    for row, slot in enumerate(slots):
        model = make() if slot == BASE else peft_model(make(), every[slot])
        with torch.no_grad():
            found.append(run(model, slice(row, row + 1)))
    return torch.cat(found)


ROWS = [[2, 0, BASE, 2, 1, BASE], [0, 0, 0, 0, 0, 0], [BASE] * 6]


@pytest.mark.parametrize("slots", ROWS)
def test_any_adapter_for_any_row(slots):
    every = adapters(llama())
    ids = torch.randint(1, 60, (6, 9), generator=torch.Generator().manual_seed(1))
    stack = filled(llama(), every)
    route, _ = stack.gather([stack.capacity if slot == BASE else slot for slot in slots])
    with torch.no_grad(), stack.routed(route):
        found = stack.model(ids).logits
    expected = expected_rows(llama, every, slots, lambda model, rows: model(ids[rows]).logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_of_the_base_are_bitwise_the_base():
    stack = filled(llama(torch.float32), adapters(llama(torch.float32)))
    ids = torch.arange(1, 19).view(2, 9)
    with torch.no_grad():
        plain = stack.model(ids).logits
        with stack.routed(stack.gather([stack.capacity] * 2)[0]):
            assert torch.equal(stack.model(ids).logits, plain)


def test_greedy_decoding_with_a_cache_equals_peft_generate():
    every, slots = adapters(llama()), [1, BASE, 2, 0, 1]
    ids = torch.randint(1, 60, (5, 6), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    stack = filled(llama(), every)
    with torch.no_grad(), stack.routed(stack.gather([stack.capacity if slot == BASE else slot for slot in slots])[0]):
        found = stack.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    def alone(model, rows):
        return model.generate(input_ids=ids[rows], attention_mask=torch.ones_like(ids[rows]), **settings)

    assert torch.equal(found, expected_rows(llama, every, slots, alone))


def test_encoder_and_decoder_rows_of_different_lengths():
    every, slots = adapters(t5()), [0, 0, 1, 1, 2, 2]
    generator = torch.Generator().manual_seed(1)
    ids, decoder = torch.randint(1, 60, (6, 9), generator=generator), torch.randint(1, 60, (6, 4), generator=generator)
    stack = filled(t5(), every)
    with torch.no_grad(), stack.routed(stack.span(0, 3)):
        found = stack.model(input_ids=ids, decoder_input_ids=decoder).logits
    expected = expected_rows(
        t5, every, slots, lambda model, rows: model(input_ids=ids[rows], decoder_input_ids=decoder[rows]).logits
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_initial_weights_are_those_of_every_backend_bitwise():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = initial_weights(llama(dtype), linear_targets(llama(dtype)), lora_rank=4, seed=7)
        adapted = LORA.apply(llama(dtype), lora_rank=4, seed=7)
        for name, (a, b) in found.items():
            layer = adapted.base_model.model.get_submodule(name)
            assert torch.equal(a.float(), layer.lora_A["default"].weight.float())
            assert torch.equal(b.float(), layer.lora_B["default"].weight.float())
    other = initial_weights(llama(), linear_targets(llama()), lora_rank=4, seed=8)
    assert all((found[name][0] != other[name][0]).any() for name in found)


def test_drawing_initial_weights_leaves_the_global_stream_alone():
    model = llama()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    initial_weights(model, linear_targets(model), lora_rank=4, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_nan_adapter_spoils_its_own_rows_only():
    every = adapters(llama(torch.float32))
    ids = torch.randint(1, 60, (4, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for poison in (1.0, float("nan")):
        stack = filled(llama(torch.float32), every)
        stack.table[1] *= poison
        with torch.no_grad(), stack.routed(stack.gather([0, 1, 2, stack.capacity])[0]):
            found.append(stack.model(ids).logits)
    assert torch.equal(found[0][[0, 2, 3]], found[1][[0, 2, 3]]) and found[1][1].isnan().all()


def test_write_read_clear_and_remove():
    model = llama(torch.bfloat16)
    ids = torch.arange(1, 10).view(1, 9)
    with torch.no_grad():
        plain = model(ids).logits
    every = adapters(llama(torch.float32))
    stack = filled(model, every, trainable=True)
    assert stack.theta.dtype == torch.float32 and stack.table.dtype == torch.bfloat16
    for slot, weights in enumerate(every):
        rank = next(iter(weights.values()))[0].shape[0]
        back = stack.read(slot, rank)
        assert all(torch.equal(x, y) for name in weights for x, y in zip(weights[name], back[name], strict=True))
    with torch.no_grad(), stack.routed(stack.span(1, 2)):
        assert not torch.equal(stack.model(ids).logits, plain)
        stack.clear(1)
        assert torch.equal(stack.model(ids).logits, plain)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight is layer.base.weight and layer.bias is layer.base.bias and layer.in_features == 32
    stack.remove()
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


@pytest.mark.parametrize("trainable", [False, True])
def test_passes_compute_with_b_times_its_scale_rounded_once(trainable):
    every = adapters(llama(torch.float32))
    stack = filled(llama(torch.bfloat16), every, trainable=trainable)
    assert (stack.theta is not None) == trainable
    for slot, weights in enumerate(every):
        rank = next(iter(weights.values()))[0].shape[0]
        layers = stack.span(slot, slot + 1).layers
        for (a, b), views in zip(weights.values(), layers, strict=True):
            assert torch.equal(views.a[0, :rank], a.bfloat16())
            assert torch.equal(views.b[0, :rank], (LORA.alpha / rank * b.T).bfloat16())


def test_a_slot_of_a_bf16_base_does_not_depend_on_its_neighbours_scales():
    every, ids = adapters(llama(torch.float32), ranks=(4, 4, 4)), torch.arange(1, 28).view(3, 9)
    found = []
    for scales in ((0.7, 0.7, 0.7), (0.7, 1.3, 1.9)):
        stack = AdapterStack(llama(torch.bfloat16), linear_targets(llama()), capacity=3, max_lora_rank=4)
        for slot, (weights, scale) in enumerate(zip(every, scales, strict=True)):
            stack.write(slot, weights, scale)
        with torch.no_grad(), stack.routed(stack.span(0, 3)):
            found.append(stack.model(ids).logits)
    assert torch.equal(found[0][0], found[1][0]) and not torch.equal(found[0][1], found[1][1])


def test_a_bf16_layer_is_nearer_to_fp64_than_when_the_adapter_is_added_last():
    """The frozen product is never rounded by itself: what the adapter adds to it is rounded, and the sum."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(256, 192, bias=False).requires_grad_(False)
    model = nn.Sequential(linear).to(torch.bfloat16)
    a, b = (torch.randn(*shape, generator=generator) * 0.05 for shape in ((8, 256), (192, 8)))
    x = torch.randn(1, 64, 256, generator=generator).bfloat16()
    exact_a, exact_b, weight = a.bfloat16().double(), (2.0 * b).bfloat16().double(), linear.weight.double()
    exact = x.double() @ weight.T + (x.double() @ exact_a.T) @ exact_b.T
    added_last = torch.nn.functional.linear(x, linear.weight) + (x @ a.bfloat16().T) @ (2.0 * b).bfloat16().T
    stack = AdapterStack(model, ["0"], capacity=1, max_lora_rank=8)
    stack.write(0, {"0": (a, b)}, 2.0)
    with torch.no_grad(), stack.routed(stack.span(0, 1)):
        found = model(x)
    assert (found.double() - exact).norm() < 0.9 * (added_last.double() - exact).norm()


def test_what_does_not_fit_is_refused():
    stack = AdapterStack(llama(), linear_targets(llama()), capacity=2, max_lora_rank=4)
    with pytest.raises(ValueError, match=r"rank 8 at model.layers.0.self_attn.q_proj is more than 4"):
        stack.write(0, adapters(llama(), ranks=(8,))[0], 1.0)
    (fitting,) = adapters(llama(), ranks=(4,))
    name = next(iter(fitting))
    wrong = fitting | {name: (fitting[name][0][:, :-1], fitting[name][1])}
    with pytest.raises(ValueError, match="made for another base"):
        stack.write(0, wrong, 1.0)
    del wrong[name]
    with pytest.raises(ValueError, match=r"lacks modules \['model.layers.0.self_attn.q_proj'\]"):
        stack.write(0, wrong, 1.0)
    with pytest.raises(ValueError, match=r"adapter target model.embed_tokens is a Embedding"):
        AdapterStack(llama(), ["model.embed_tokens"], capacity=2, max_lora_rank=4)
