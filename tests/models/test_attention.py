import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, T5Config, masking_utils
from transformers import T5ForConditionalGeneration as T5

from raytune_llm.models.attention import MASKLESS, use_maskless_attention

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
