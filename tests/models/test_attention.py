import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, T5Config, masking_utils
from transformers import T5ForConditionalGeneration as T5
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raytune_llm.models import attention as attention_file
from raytune_llm.models.attention import MASKLESS, fast_sdpa, prepare_attention, use_maskless_attention

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS, **more)).eval()


def test_logits_are_bitwise_those_with_masks_and_none_is_built(monkeypatch):
    model, ids = llama(), torch.randint(1, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    expected = model(ids, use_cache=False).logits
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda *args, **kwargs: pytest.fail("a mask was built"))
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *args: pytest.fail("waited for device"))
    with use_maskless_attention(model):
        assert torch.equal(model(ids, use_cache=False).logits, expected)
    assert model.config._attn_implementation == "sdpa"


def test_padding_on_the_right_changes_nothing():
    model = llama(dtype=torch.float64).double()
    ids = torch.randint(1, 50, (1, 7), generator=torch.Generator().manual_seed(1))
    alone = model(ids, use_cache=False).logits
    with use_maskless_attention(model):
        found = model(torch.nn.functional.pad(ids, (0, 5)), use_cache=False).logits[:, :7]
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)


def test_bases_that_need_masks_keep_them():
    sliding = MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=4))
    t5 = T5(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    eager = llama(attn_implementation="eager")
    for model in (sliding, t5, eager):
        before = model.config._attn_implementation
        with use_maskless_attention(model):
            assert model.config._attn_implementation == before != MASKLESS


def random_states(heads, tokens, width=16, size=2):
    generator = torch.Generator().manual_seed(heads + tokens)
    return torch.randn(size, heads, tokens, width, generator=generator).to(torch.bfloat16).requires_grad_()


class Layer(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def values_and_gradients(attention, mask, queries, keys, dtype):
    states = [random_states(4, queries), random_states(2, keys), random_states(2, keys)]
    found, _ = attention(Layer(), *(state.to(dtype) for state in states), mask, scaling=0.3)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [found.detach(), *torch.autograd.grad(found, states, upstream)]


SEEN = torch.tensor([[[[True] * 5 + [False] * 2]], [[[True] * 7]]])
MASKS = {
    "causal": (None, 7, 7),
    "one query": (None, 1, 7),
    "keys that are seen": (SEEN, 7, 7),
    "added": (torch.where(SEEN, 0.0, -1e4).to(torch.bfloat16), 1, 7),
    "of each head": (torch.linspace(-1, 1, 2 * 4 * 7 * 7).view(2, 4, 7, 7).to(torch.bfloat16), 7, 7),
}


@pytest.mark.parametrize("case", MASKS)
def test_plain_products_in_bfloat16_are_as_near_to_float32_as_flash_attention(case):
    mask, queries, keys = MASKS[case]
    exact = mask.float() if mask is not None and mask.dtype != torch.bool else mask
    expected = values_and_gradients(sdpa_attention_forward, exact, queries, keys, torch.float32)
    flash = values_and_gradients(sdpa_attention_forward, mask, queries, keys, torch.bfloat16)
    plain = values_and_gradients(fast_sdpa, mask, queries, keys, torch.bfloat16)
    assert not all(torch.equal(one, other) for one, other in zip(plain, flash, strict=True))
    for right, one, other in zip(expected, plain, flash, strict=True):
        distances = [float((found.float() - right).norm() / right.norm()) for found in (one, other)]
        assert distances[0] <= max(2 * distances[1], 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_are_left_to_torch(dtype):
    for found in ((7, 7), (1, 7)):
        pairs = (
            values_and_gradients(attention, None, *found, dtype) for attention in (fast_sdpa, sdpa_attention_forward)
        )
        assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))


def test_long_rows_are_left_to_flash_attention(monkeypatch):
    monkeypatch.setattr(attention_file, "MOST_PLAIN_KEYS", {True: 6, False: 6})
    pairs = (
        values_and_gradients(attention, None, 7, 7, torch.bfloat16) for attention in (fast_sdpa, sdpa_attention_forward)
    )
    assert all(torch.equal(one, other) for one, other in zip(*pairs, strict=True))


def test_a_model_in_bfloat16_takes_plain_products():
    model = llama(dtype=torch.bfloat16).to(torch.bfloat16)
    prepare_attention()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(ids, use_cache=False)
    kinds = {event.key for event in profile.key_averages()}
    assert "aten::bmm" in kinds and not any("scaled_dot_product" in kind for kind in kinds)


def test_scores_are_exact_where_no_gradients_are_recorded():
    query, key = (random_states(heads, 40).detach() * 2 for heads in (4, 2))
    exact = sdpa_attention_forward(Layer(), query.float(), key.float(), key.float(), None, scaling=0.3)[0]

    def distance():
        return float((fast_sdpa(Layer(), query, key, key, None, scaling=0.3)[0].float() - exact).norm() / exact.norm())

    with torch.no_grad():
        precise = distance()
    assert 1.3 * precise < distance()


def test_one_query_that_sees_all_keys_takes_plain_products_at_any_length():
    query, key = random_states(4, 1).detach(), random_states(2, 300).detach()
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fast_sdpa(Layer(), query, key, key, None, scaling=0.3)
    assert not any("scaled_dot_product" in event.key for event in profile.key_averages())
